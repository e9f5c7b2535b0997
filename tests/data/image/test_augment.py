"""Augmentation: each step by itself, its laws, and the loss of mixed images."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from quartet.data.image import augment
from quartet.data.image.augment import Augment
from quartet.data.image.images import ImageData, LabelledImages
from quartet.data.spec import Spec
from quartet.tasks.classification import Classification

OFF = {
    "crop": 0,
    "fill": "zero",
    "flip": False,
    "randaugment": 0,
    "colour": 0.0,
    "erasing": 0.0,
    "mixup": 0.0,
    "cutmix": 0.0,
}
ALL = {"crop": 2, "flip": True, "randaugment": 9, "colour": 0.3, "erasing": 0.5, "mixup": 0.4, "cutmix": 1.0}
RAW = ("crop", "flip", "randaugment", "colour")


def some_images(n=16, channels=3, size=8):
    return torch.from_numpy(np.random.default_rng(0).integers(256, size=(n, channels, size, size), dtype=np.uint8))


def batch(images):
    return {"inputs": {"image": images.float() - 128}, "target": torch.arange(len(images)) % 3, "index": None}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


# every step


@pytest.mark.parametrize("name", ALL)
def test_randomness_is_torch_s_global_generator(name):
    some = Augment(**{**OFF, name: ALL[name]})

    def augmented():
        return some.normalised(batch(some.raw(some_images())))["inputs"]["image"]

    state = torch.get_rng_state()
    first, second = augmented(), augmented()
    torch.set_rng_state(state)
    np.random.seed(1)
    assert torch.equal(augmented(), first) and not torch.equal(first, second)


def test_what_is_off_draws_nothing_and_changes_nothing():
    state, off = torch.get_rng_state(), Augment(**OFF)
    given = batch(some_images())
    assert torch.equal(off.raw(some_images()), some_images())
    assert torch.equal(off.normalised(given)["inputs"]["image"], given["inputs"]["image"])
    assert off.normalised(given).keys() == given.keys()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", RAW)
def test_grey_and_colour_keep_their_shape_and_range(name, channels):
    images = Augment(**{**OFF, name: ALL[name]}).raw(some_images(channels=channels))
    assert images.shape == (16, channels, 8, 8) and images.min() >= 0 and images.max() <= 255


@pytest.mark.parametrize("name", ALL)
def test_the_given_images_are_left_alone(name):
    images, some = some_images(), Augment(**{**OFF, name: ALL[name]})
    given = batch(images)
    before = given["inputs"]["image"].clone()
    some.raw(images)
    some.normalised(given)
    assert torch.equal(images, some_images()) and torch.equal(given["inputs"]["image"], before)


@pytest.mark.parametrize("training", [True, False])
def test_validation_and_test_are_never_augmented(training):
    class Source:
        def load(self):
            return LabelledImages(some_images(60).numpy(), np.arange(60) % 3, ("a", "b", "c"))

    common = {"batch_size": 8, "split": [0.6, 0.2, 0.2], "split_seed": 0, "folds": None, "fold": None, "seed": 0}
    data = ImageData(source=Source(), augment=Augment(**{**OFF, **ALL}), **common)
    data.setup()
    data.trainer = SimpleNamespace(training=training)  # type: ignore[assignment]
    given = data.datasets["val"].gather(torch.arange(8))
    found = data.on_after_batch_transfer(given, 0)
    assert torch.equal(found["inputs"]["image"], data.normalise(given["inputs"]["image"])) is not training
    assert ("mix" in found, "target_mix" in found) == (training, training)
    assert torch.equal(found["target"], given["target"])


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("crop", -1, "an integer of at least 0"),
        ("crop", 1.5, "an integer of at least 0"),
        ("fill", "white", "one of zero, reflect"),
        ("flip", 1, "true or false"),
        ("randaugment", 31, "an integer from 0 (off) to 30"),
        ("colour", 1.0, "a number from 0 to below 1"),
        ("erasing", 1.1, "a number from 0 to 1"),
        ("mixup", -0.1, "a number of at least 0"),
        ("cutmix", "on", "a number of at least 0"),
    ],
)
def test_values_out_of_range_are_named(name, value, words):
    with pytest.raises(ValueError) as error:
        Augment(**{**OFF, name: value})
    assert str(error.value).startswith(f"data.augment.{name} must be {words}")
    assert str(error.value).endswith(f"not {value!r}")


# crop and flip


@pytest.mark.parametrize("fill", ["zero", "reflect"])
def test_a_crop_of_0_pixels_is_the_image(fill):
    assert torch.equal(augment.random_crop(some_images(), 0, fill), some_images())


@pytest.mark.parametrize(("fill", "mode"), [("zero", "constant"), ("reflect", "reflect")])
def test_a_crop_is_a_window_of_the_padded_image(fill, mode):
    images = some_images(n=200, size=6)
    moved, found = augment.random_crop(images, 1, fill), set()
    assert moved.dtype == torch.uint8
    for before, after in zip(images, moved, strict=True):
        padded = F.pad(before.float(), (1, 1, 1, 1), mode=mode)
        places = [(y, x) for y in range(3) for x in range(3) if torch.equal(padded[:, y : y + 6, x : x + 6], after)]
        assert len(places) == 1
        found.update(places)
    assert len(found) == 9  # 200 draws of 9 places, under a fixed seed


def test_flips_are_involutions_and_hit_about_half():
    images = some_images(n=40)
    state = torch.get_rng_state()
    flipped = augment.random_flip(images)
    mirrored = [torch.equal(a.flip(-1), b) for a, b in zip(images, flipped, strict=True)]
    assert all(m or torch.equal(a, b) for m, a, b in zip(mirrored, images, flipped, strict=True))
    assert 10 < sum(mirrored) < 30  # fixed seed
    torch.set_rng_state(state)
    assert torch.equal(augment.random_flip(flipped), images)


# colour, operations, erasing


def test_colour_jitter_of_a_grey_area_is_its_brightness(monkeypatch):
    grey = torch.full((2, 3, 4, 4), 100, dtype=torch.uint8)
    monkeypatch.setattr(torch, "rand", lambda *shape, device: torch.full(shape, 1.0))
    torch.testing.assert_close(augment.colour_jitter(grey, 0.2), torch.full((2, 3, 4, 4), 120.0))


def test_colour_jitter_is_drawn_for_each_image():
    same = some_images(n=1).expand(6, -1, -1, -1)
    jittered = augment.colour_jitter(same, 0.3)
    assert len({tuple(image.flatten().tolist()) for image in jittered}) == 6


def test_contrast_and_saturation_go_away_from_grey(monkeypatch):
    images = some_images(n=4)
    draws = torch.full((3, 4, 1, 1, 1), 0.5)
    draws[1:] = 0.0  # factors 1, 1 - 0.9, 1 - 0.9
    monkeypatch.setattr(torch, "rand", lambda *shape, device: draws)
    dull = augment.colour_jitter(images, 0.9)
    assert dull.std() < 0.2 * images.float().std()
    assert dull.std(1).mean() < 0.2 * dull.std((2, 3)).mean()  # almost no colour is left


def test_the_operations_of_randaugment_are_torchvision_s():
    from torchvision.transforms import v2

    assert len(augment.randaugment_operations(0.3, 8)) == len(v2.RandAugment._AUGMENTATION_SPACE) == 14


def test_operations_at_magnitude_0_but_two_keep_the_image():
    """Autocontrast and equalize have no magnitude."""
    images = some_images().clamp(max=254)  # solarize turns what is at its threshold, 255
    kept = [torch.equal(operation(images, 1), images) for operation in augment.randaugment_operations(0.0, 8)]
    assert all(kept[:12])


def test_randaugment_changes_images_differently():
    same = some_images(n=1).expand(32, -1, -1, -1)
    changed = augment.rand_augment(same, 20)
    assert len({tuple(image.flatten().tolist()) for image in changed}) > 16


@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_erasing_sets_one_box_of_the_mean(probability):
    images = torch.ones(64, 3, 32, 32)
    erased = augment.random_erase(images, probability) == 0
    hit = erased.flatten(1).any(1)
    assert {0.0: hit.sum() == 0, 0.5: 16 < hit.sum() < 48, 1.0: hit.all()}[probability]
    for mask in erased[hit]:
        rows, columns = mask[0].any(1), mask[0].any(0)
        assert torch.equal(mask, (rows[:, None] & columns).expand(3, -1, -1))  # one box, through all channels
        assert 0.01 < mask.float().mean() < 0.36


# mixing


@pytest.mark.parametrize("settings", [{"mixup": 0.5}, {"cutmix": 1.0}, {"mixup": 0.5, "cutmix": 1.0}])
def test_images_and_targets_are_mixed_in_the_same_shares(settings):
    """LabelledImages that are constant, of the value of their number: a mixture's mean tells its shares."""
    numbers = torch.arange(64.0)
    given = batch(torch.zeros(64, 1, 8, 8))
    given = {**given, "inputs": {"image": numbers[:, None, None, None].expand(64, 1, 8, 8)}, "target": torch.arange(64)}
    mixed = Augment(**{**OFF, **settings}).normalised(given)
    expected = mixed["mix"] * numbers + (1 - mixed["mix"]) * mixed["target_mix"]
    torch.testing.assert_close(mixed["inputs"]["image"].mean((1, 2, 3)), expected, rtol=1e-5, atol=1e-4)
    assert torch.equal(mixed["target"], torch.arange(64)) and mixed["target_mix"].dtype == torch.int64
    assert mixed["mix"].shape == (64,) and 0 <= mixed["mix"].min() < 0.3 and 0.7 < mixed["mix"].max() <= 1


def test_cutmix_pastes_a_box_and_mixup_blends():
    images = torch.zeros(32, 1, 16, 16)
    for shares, values in ((augment.cutmix_shares(images, 1.0), 2), (augment.mixup_shares(images, 1.0), 32)):
        assert len(shares.unique()) == values and shares.min() >= 0 and shares.max() <= 1


def test_with_both_each_image_draws_which_one():
    some, images = Augment(**{**OFF, "mixup": 1.0, "cutmix": 1.0}), torch.arange(64.0)[:, None, None, None]
    mixed = some.normalised({**batch(images), "inputs": {"image": images.expand(64, 1, 16, 16)}})["inputs"]["image"]
    blended = [len(image.unique()) == 1 and image[0, 0, 0].item() % 1 != 0 for image in mixed]
    assert 16 < sum(blended) < 48  # fixed seed


class Table(torch.nn.Module):
    """A network whose logits are given."""

    def forward(self, image):
        return image


def task(**settings):
    spec = Spec(sizes={}, classes=("a", "b", "c"), class_counts=(1, 1, 2))
    given = {"loss": "cross_entropy", "label_smoothing": 0.0, "class_weights": None, "l1": 0.0, "l2": 0.0, **settings}
    some: Any = Classification(network=Table(), spec=spec, **given)
    some.__dict__["logged"] = {}
    some.__dict__["log_dict"] = lambda values, **_: some.logged.update(values)
    loop = SimpleNamespace(epoch_loop=None)
    some.__dict__["_trainer"] = SimpleNamespace(
        global_step=0, log_every_n_steps=1, fit_loop=loop, lightning_module=some
    )
    return some


LOGITS = torch.tensor([[1.0, -1.0, 0.5], [0.0, 2.0, -0.5], [0.3, 0.2, 0.1], [-1.0, 0.0, 1.0]])
TARGET, PARTNER = torch.tensor([0, 1, 2, 0]), torch.tensor([1, 1, 0, 2])


def mixed_batch(share):
    return {"inputs": {"image": LOGITS}, "target": TARGET, "target_mix": PARTNER, "mix": share, "index": None}


@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy", "mean_squared_error"])
def test_a_share_of_1_is_the_plain_loss(loss):
    plain = {"inputs": {"image": LOGITS}, "target": TARGET, "index": None}
    some = task(loss=loss, label_smoothing=0.1, class_weights="auto")
    assert torch.equal(some.step(mixed_batch(torch.ones(4)), "train")[0], some.step(plain, "train")[0])


@pytest.mark.parametrize("settings", [{}, {"label_smoothing": 0.2}, {"class_weights": [1.0, 2.0, 0.5]}])
def test_the_loss_of_a_mixture_is_the_mixture_of_losses(settings):
    """Cross-entropy is linear in the target."""
    share, some = torch.tensor([0.9, 0.5, 0.2, 0.0]), task(**settings)
    loss = some.step(mixed_batch(share), "train")[0]
    weight = torch.tensor(settings.get("class_weights", [1.0, 1.0, 1.0]))
    smoothing = settings.get("label_smoothing", 0.0)

    def by_hand(i, label):
        log_p = LOGITS[i] - LOGITS[i].exp().sum().log()
        wanted = torch.full((3,), smoothing / 3)
        wanted[label] += 1 - smoothing
        return -(weight * wanted * log_p).sum()

    expected = [s * by_hand(i, TARGET[i]) + (1 - s) * by_hand(i, PARTNER[i]) for i, s in enumerate(share)]
    torch.testing.assert_close(loss, torch.stack(expected).mean())


def test_the_logged_accuracy_is_that_of_the_image_itself():
    some = task()
    some.step(mixed_batch(torch.zeros(4)), "train")
    assert some.logged["train/accuracy"] == 0.5  # two of LOGITS are largest at TARGET
