"""Laws of every data module, run over the embedded sources; splits as such."""

import copy
import json
import os
from itertools import chain
from types import SimpleNamespace

import pytest
import torch

from quartet.data.base import user_path
from quartet.data.image.augment import Augment
from quartet.data.image.images import ImageData
from quartet.data.image.sets import Digits
from quartet.data.spec import Spec
from quartet.data.splits import SPLITS
from quartet.data.table.tabular import EmbeddedTable, TableData

COMMON = {"batch_size": 16, "split": [0.8, 0.1, 0.1], "split_seed": 0, "folds": None, "fold": None, "seed": 0}
SHARES = [[0.8, 0.1, 0.1], [0.6, 0.2, 0.2], [0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]


def digits(**changes):
    off = {"fill": "zero", "flip": False, "randaugment": 0, "colour": 0.0, "erasing": 0.0, "mixup": 0.0, "cutmix": 0.0}
    return ImageData(**{**COMMON, "source": Digits(), "augment": Augment(crop=1, **off), **changes})


def table(name, **changes):
    return TableData(**{**COMMON, "source": EmbeddedTable(name), "scaling": "standard", **changes})


MODULES = {
    "digits": digits,
    "breast_cancer": lambda **changes: table("breast_cancer", **changes),
    "wine": lambda **changes: table("wine", **changes),
    "diabetes": lambda **changes: table("diabetes", **changes),
}


@pytest.fixture(scope="module", params=MODULES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def data(name):
    module = MODULES[name]()
    module.setup()
    return module


def content(module, part):
    return module.datasets[part].gather(torch.arange(len(module.datasets[part])))


def same(a, b):
    inputs = all(torch.equal(a["inputs"][name], b["inputs"][name]) for name in a["inputs"])
    return inputs and a["inputs"].keys() == b["inputs"].keys() and torch.equal(a["target"], b["target"])


# every data module


def test_ids_partition_the_source(data):
    ids = list(chain(*(data.ids[part] for part in SPLITS)))
    assert sorted(ids) == list(range(len(ids)))
    assert [len(data.ids[part]) for part in SPLITS] == [len(data.datasets[part]) for part in SPLITS]
    assert data.report()["parts"] == {part: {"samples": len(data.ids[part])} for part in SPLITS}


def test_preprocessing_survives_json_exactly(data):
    written = json.dumps(data.preprocessing())
    assert json.dumps(json.loads(written)) == written
    assert Spec.from_json(json.loads(written)["spec"]) == data.spec
    json.dumps(data.report())


def test_restored_module_makes_the_same_tensors_and_fits_nothing(name, data):
    restored = MODULES[name]()
    restored.restore(json.loads(json.dumps(data.preprocessing())))
    assert restored.spec == data.spec  # before any data are read
    restored.fit = None
    restored.setup()
    assert restored.ids == data.ids
    assert all(same(content(restored, part), content(data, part)) for part in SPLITS)


def test_changed_data_are_refused(name, data):
    changed = MODULES[name]()
    changed.restore({**data.preprocessing(), "fingerprint": "another"})
    with pytest.raises(ValueError, match="the data have changed since the run"):
        changed.setup()


def test_setup_twice_is_setup_once(data):
    before = data.datasets["train"]
    data.setup("fit")
    assert data.datasets["train"] is before


def test_spec_needs_setup_or_restore(name):
    with pytest.raises(AssertionError, match=r"call setup\(\) or restore\(\) first"):
        _ = MODULES[name]().spec


def test_evaluation_covers_each_sample_once_in_order(data):
    for part, loader in (("val", data.val_dataloader()), ("test", data.test_dataloader())):
        batches = list(loader)
        assert len(batches) == len(loader)
        assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(len(data.ids[part])))


def test_training_shuffles_anew_each_epoch_and_drops_the_short_batch(data):
    loader = data.train_dataloader()
    first, second = (torch.cat([batch["index"] for batch in loader]).tolist() for _ in range(2))
    assert len(first) == len(set(first)) == len(data.ids["train"]) // 16 * 16
    assert first != second
    assert torch.cat([batch["index"] for batch in data.train_dataloader()]).tolist() == first


def test_two_ranks_share_the_batches_of_one_rank(name):
    def batches(rank, world, batch_size):
        module = MODULES[name](batch_size=batch_size)
        strategy = SimpleNamespace(root_device=torch.device("cpu"))
        module.trainer = SimpleNamespace(
            strategy=strategy, global_rank=rank, world_size=world, training=False, accumulate_grad_batches=1
        )
        module.setup()
        return [batch["index"] for batch in module.train_dataloader()]

    halves = zip(batches(0, 2, 8), batches(1, 2, 8), strict=True)
    assert [torch.cat(pair).sort()[0].tolist() for pair in halves] == [x.sort()[0].tolist() for x in batches(0, 1, 16)]


def test_too_large_a_batch_names_the_remedy(name):
    with pytest.raises(ValueError, match=r"data\.batch_size=5000 is more than the \d+ training samples; use"):
        MODULES[name](batch_size=5000).setup()


def test_empty_part_is_refused(name):
    with pytest.raises(ValueError, match="nothing is left for val and test"):
        MODULES[name](split=[1.0, 0.0, 0.0]).setup()


def test_failed_setup_leaves_nothing_behind(name):
    module = MODULES[name](batch_size=5000)
    with pytest.raises(ValueError, match="batch_size"):
        module.setup()
    assert not module.datasets


def test_reading_and_batching_do_not_touch_the_fitted_values(data):
    before = copy.deepcopy(data.preprocessing())
    next(iter(data.train_dataloader()))
    assert data.preprocessing() == before


def test_user_path_is_absolute_and_knows_home():
    assert user_path("~/x") == os.path.join(os.path.expanduser("~"), "x")
    assert user_path("x") == os.path.join(os.getcwd(), "x")
