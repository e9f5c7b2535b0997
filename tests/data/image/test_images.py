"""LabelledImages: uint8 in memory, normalised by the training part, augmented in training only."""

import json
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from pytorch_lightning import LightningModule, Trainer

from quartet.data.image.augment import Augment
from quartet.data.image.decode import moments, to_uint8
from quartet.data.image.images import ImageData, LabelledImages, channel_statistics
from quartet.data.image.sets import Digits


@dataclass(frozen=True)
class Given:
    images: LabelledImages

    def load(self):
        return self.images


def colourful(n=60, channels=3, size=6):
    images = np.random.default_rng(0).integers(256, size=(n, channels, size, size), dtype=np.uint8)
    return LabelledImages(images, np.arange(n) % 3, ("cat", "dog", "fox"))


def augment(**changes):
    off = {"crop": 0, "fill": "zero", "flip": False, "randaugment": 0}
    return Augment(**{**off, "colour": 0.0, "erasing": 0.0, "mixup": 0.0, "cutmix": 0.0, **changes})


def make(source=None, **changes):
    values = {
        "batch_size": 8,
        "split": [0.6, 0.2, 0.2],
        "split_seed": 0,
        "folds": None,
        "fold": None,
        "seed": 0,
        "augment": augment(),
    }
    data = ImageData(**{**values, "source": source or Given(colourful()), **changes})
    data.setup()
    return data


def batch_of(data, training):
    data.trainer = SimpleNamespace(training=training)
    batch = data.datasets["train"].gather(torch.arange(8))
    return data.on_after_batch_transfer(batch, 0)


def test_digits_are_eight_by_eight_grey_from_0_to_255():
    labelled = Digits().load()
    assert labelled.images.shape == (1797, 1, 8, 8) and labelled.images.dtype == np.uint8
    assert (labelled.images.min(), labelled.images.max()) == (0, 255)
    assert labelled.classes == tuple("0123456789") and set(labelled.labels) == set(range(10))


def test_spec_says_what_the_network_needs():
    spec = make().spec
    assert spec.sizes == {"in_channels": 3, "image_size": 6, "n_classes": 3}
    assert spec.classes == ("cat", "dog", "fox") and spec.class_counts == (12, 12, 12)


def test_memory_holds_uint8_and_the_hook_makes_float():
    data = make()
    assert data.datasets["train"].gather(torch.arange(2))["inputs"]["image"].dtype == torch.uint8
    batch = batch_of(data, training=True)
    assert batch["inputs"]["image"].dtype == torch.float32 and batch["inputs"]["image"].shape == (8, 3, 6, 6)
    assert batch["target"].dtype == torch.int64 and batch["index"].tolist() == list(range(8))


def test_training_images_have_mean_0_and_std_1_per_channel():
    data = make()
    image = data.normalise(data.datasets["train"].gather(torch.arange(36))["inputs"]["image"])
    torch.testing.assert_close(image.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(image.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-5, rtol=0)


def test_statistics_are_exact():
    images = colourful(n=5).images.copy()
    images[:, 1] = 77
    labelled = LabelledImages(images, np.zeros(5, int), ("a",))
    mean, std = channel_statistics(moments(labelled.images).sum(0), images[:, 0].size)
    np.testing.assert_allclose(mean, images.mean((0, 2, 3)) / 255, rtol=1e-12)
    np.testing.assert_allclose(std, [images[:, 0].std() / 255, 0.0, images[:, 2].std() / 255], rtol=1e-12)


def test_only_the_training_part_is_fitted():
    data, labelled = make(), colourful()
    images = labelled.images.copy()
    images[data.ids["val"] + data.ids["test"]] = 255
    changed = make(Given(LabelledImages(images, labelled.labels, labelled.classes))).preprocessing()
    assert changed["fingerprint"] != data.preprocessing()["fingerprint"]
    assert {**changed, "fingerprint": 0} == {**data.preprocessing(), "fingerprint": 0}


@pytest.mark.parametrize("what", ["pixel", "label", "class name"])
def test_fingerprint_sees_every_change(what):
    labelled = colourful()
    images, labels, classes = labelled.images.copy(), labelled.labels.copy(), labelled.classes
    if what == "pixel":
        images[0, 0, 0, 0] ^= 1
    elif what == "label":
        labels[0] = 1
    else:
        classes = ("cat", "dog", "wolf")
    assert LabelledImages(images, labels, classes).fingerprint() != labelled.fingerprint()


# augmentation


def test_augmentation_is_for_training_only():
    data = make(augment=augment(crop=2, flip=True))
    plain = data.normalise(data.datasets["train"].gather(torch.arange(8))["inputs"]["image"])
    torch.manual_seed(0)
    assert torch.equal(batch_of(data, training=False)["inputs"]["image"], plain)
    assert not torch.equal(batch_of(data, training=True)["inputs"]["image"], plain)


def test_augmentation_depends_on_the_generator_of_torch_alone():
    data = make(augment=augment(crop=2, flip=True))
    state = torch.get_rng_state()
    first, second = batch_of(data, training=True), batch_of(data, training=True)
    np.random.seed(1)
    torch.set_rng_state(state)
    assert torch.equal(batch_of(data, training=True)["inputs"]["image"], first["inputs"]["image"])
    assert not torch.equal(first["inputs"]["image"], second["inputs"]["image"])


def test_without_augmentation_no_random_number_is_drawn():
    state = torch.get_rng_state()
    batch_of(make(), training=True)
    assert torch.equal(torch.get_rng_state(), state)


def test_lightning_augments_in_fit_but_not_in_its_validation():
    class Recorder(LightningModule):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))
            self.seen = {"train": [], "val": []}

        def training_step(self, batch):
            self.seen["train"].append(batch)
            return self.weight * 0

        def validation_step(self, batch):
            self.seen["val"].append(batch)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    data, recorder = make(augment=augment(crop=2)), Recorder()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        log_every_n_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(recorder, datamodule=data)

    def changed(part, batch):
        plain = data.normalise(data.datasets[part].gather(batch["index"])["inputs"]["image"])
        return not torch.equal(plain, batch["inputs"]["image"])

    assert all(changed("train", batch) for batch in recorder.seen["train"])
    assert recorder.seen["val"] and not any(changed("val", batch) for batch in recorder.seen["val"])


def test_a_crop_must_leave_something_of_the_image():
    with pytest.raises(ValueError, match=r"data\.augment\.crop=6 must be 0 … 5 pixels for images of 6×6"):
        make(augment=augment(crop=6))


def test_mistakes_in_augmentation_are_found_with_all_others_of_a_config():
    problems = ImageData.problems({"augment": {"crop": -1, "flip": True, "mixup": "much"}})
    assert [problem.split(" must")[0] for problem in problems] == ["data.augment.crop", "data.augment.mixup"]


def test_official_parts_are_kept_and_val_is_a_share_of_train():
    labelled = colourful()
    given = np.array(["test" if i >= 40 else "train" for i in range(60)])
    data = make(
        Given(LabelledImages(labelled.images, labelled.labels, labelled.classes, given)), split=[0.75, 0.25, 0.0]
    )
    assert data.ids["test"] == list(range(40, 60))
    assert sorted(data.ids["train"] + data.ids["val"]) == list(range(40)) and len(data.ids["val"]) in (9, 10, 11)


def test_official_parts_belong_to_the_fingerprint():
    labelled = colourful()
    parts = [np.array([part] * 60) for part in ("train", "test")]
    prints = {LabelledImages(labelled.images, labelled.labels, labelled.classes, part).fingerprint() for part in parts}
    assert len(prints | {labelled.fingerprint()}) == 3


# inference


@pytest.mark.parametrize("source", [Digits(), Given(colourful())])
def test_encoding_a_image_again_gives_what_the_network_was_trained_on(source):
    data = make(source)
    restored = ImageData(
        source=source,
        batch_size=8,
        split=[0.8, 0.1, 0.1],
        split_seed=0,
        folds=None,
        fold=None,
        seed=0,
        augment=augment(),
    )
    restored.restore(json.loads(json.dumps(data.preprocessing())))
    images = data.raw_images("val", [3, 0, 5])
    assert images.dtype == np.uint8
    expected = data.normalise(data.datasets["val"].gather(torch.tensor([3, 0, 5]))["inputs"]["image"])
    assert torch.equal(restored.encode(list(images))["image"], expected)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_any_image_becomes_the_channels_and_size_of_the_run(mode, channels):
    white = Image.new("I;16", (20, 11), 65535) if mode == "I;16" else Image.new("RGB", (20, 11), "white").convert(mode)
    array = to_uint8(white, channels, 6)
    assert array.shape == (channels, 6, 6) and array.dtype == np.uint8 and (array >= 254).all()


def test_sixteen_bit_greys_are_scaled_not_cut_off():
    grey = Image.new("I;16", (6, 6), 128 * 256)
    assert (to_uint8(grey, 1, 6) == 128).all()


def test_a_wide_image_loses_its_ends_and_keeps_its_proportions():
    wide = np.zeros((4, 12), dtype=np.uint8)
    wide[:, 4:8] = 200
    assert (to_uint8(wide, 1, 4) == 200).all()


def test_a_photograph_is_turned_upright():
    image = Image.fromarray(np.array([[0, 255]], dtype=np.uint8).repeat(2, 0))
    exif = image.getexif()
    exif[0x0112] = 3  # upside down
    assert to_uint8(image, 1, 2).tolist() == [[[255, 0], [255, 0]]]


def test_what_is_transparent_lies_on_white():
    half = np.zeros((4, 4, 4), dtype=np.uint8)
    half[:2, :, 3] = 255  # the upper half is opaque black
    for image in (half, Image.fromarray(half), Image.fromarray(half).convert("LA")):
        assert to_uint8(image, 1, 4)[0, :, 0].tolist() == [0, 0, 255, 255]


def test_a_transparent_palette_entry_lies_on_white(tmp_path):
    image = Image.fromarray(np.array([[0, 1], [0, 1]], dtype=np.uint8), mode="P")
    image.putpalette([0, 0, 0, 90, 90, 90])
    image.save(tmp_path / "palette.png", transparency=0)
    assert to_uint8(tmp_path / "palette.png", 3, 2)[:, 0].tolist() == [[255, 90]] * 3


def test_files_are_encoded_like_the_images_in_them(tmp_path):
    data, array = make(), colourful().images[0].transpose(1, 2, 0)
    Image.fromarray(array).save(tmp_path / "image.png")
    encoded = data.encode([array, tmp_path / "image.png", str(tmp_path / "image.png")])["image"]
    assert torch.equal(encoded[0], encoded[1]) and torch.equal(encoded[0], encoded[2])


def test_a_large_jpeg_is_decoded_small_and_looks_the_same(tmp_path):
    gradient = np.add.outer(np.arange(400), np.arange(400)).clip(0, 255).astype(np.uint8)
    Image.fromarray(gradient).save(tmp_path / "large.jpg", quality=95)
    whole, reduced = to_uint8(Image.open(tmp_path / "large.jpg"), 1, 16), to_uint8(tmp_path / "large.jpg", 1, 16)
    assert np.abs(whole.astype(int) - reduced).max() <= 3


@pytest.mark.parametrize("array", [np.zeros((4, 4)), np.zeros((2, 4, 4, 3), np.uint8), np.zeros((3, 4, 5), np.uint8)])
def test_arrays_that_are_no_images_are_refused(array):
    with pytest.raises(ValueError, match=r"an image must be uint8 \(H, W\)"):
        make().encode([array])


def test_encoding_nothing_gives_nothing():
    assert make().encode([])["image"].shape == (0, 3, 6, 6)
