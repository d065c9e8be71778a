"""The baseline's mathematics against torch's own, closed forms and finite differences."""

import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cs330ray.course.learners import baseline
from cs330ray.course.learners.baseline import Batch
from cs330ray.course.learners.fewshot import conv4, tasks

FILTERS, CLASSES, SIDE, IMAGES = 3, 4, 16, 6


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The nets are tiny, and the machine may be busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def drawn_params(classifier: str = "linear", *, channels: int = 1, affine: bool = True) -> dict[str, Tensor]:
    """A net in float64 with shifts, and with scales of both signs."""
    draws = torch.Generator().manual_seed(3)
    params = baseline.init(
        classifier, filters=FILTERS, classes=CLASSES, generator=draws, affine=affine, side=SIDE, channels=channels
    )
    for name, param in params.items():
        if name.startswith("norm"):
            param += torch.randn(param.shape, generator=draws)
    return {name: param.double().requires_grad_() for name, param in params.items()}


def drawn_images(*shape: int, channels: int = 1, seed: int = 1) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, channels, SIDE, SIDE, generator=draws, dtype=torch.float64)


def drawn_batch(batches: int = 2) -> Batch:
    labels_GB = torch.arange(batches * IMAGES).view(batches, IMAGES) % CLASSES
    return Batch(drawn_images(batches, IMAGES), labels_GB)


def statistics() -> dict[str, Tensor]:
    return {name: tensor.double() for name, tensor in baseline.init_statistics(FILTERS).items()}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("affine", [True, False])
def test_in_training_it_embeds_as_the_net_of_protonet_does_one_group(channels: int, affine: bool):
    params, images_BCHW = drawn_params(channels=channels, affine=affine), drawn_images(IMAGES, channels=channels)
    z_BD = baseline.features(params, statistics(), images_BCHW, training=True)
    expected_GBD = conv4.group_features(params, images_BCHW[None])
    torch.testing.assert_close(z_BD, expected_GBD[0], rtol=1e-10, atol=1e-10)


def test_what_it_keeps_of_a_batch_is_mean_and_unbiased_variance_of_each_block():
    params, images_BCHW, kept = drawn_params(), drawn_images(IMAGES), statistics()
    baseline.features(params, kept, images_BCHW, training=True)
    y_BCHW = F.conv2d(images_BCHW, params["conv1.weight"], padding=1)
    torch.testing.assert_close(kept["norm1.mean"], y_BCHW.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(kept["norm1.var"], y_BCHW.var(dim=(0, 2, 3), correction=1))
    assert list(kept) == [f"norm{block}.{what}" for block in range(1, 5) for what in ("mean", "var")]
    assert len({tuple(tensor.tolist()) for tensor in kept.values()}) == 8


def test_at_test_an_image_is_embedded_as_torch_does_it_whatever_stands_beside_it():
    """By the paper's order of things: convolution, normalisation by what was kept, ReLU, pool."""
    params, images_BCHW = drawn_params(), drawn_images(IMAGES)
    kept = {name: tensor + 0.5 for name, tensor in statistics().items()}
    before = {name: tensor.clone() for name, tensor in kept.items()}
    x_BCHW = images_BCHW[2:3]
    for block in range(1, 5):
        x_BCHW = F.conv2d(x_BCHW, params[f"conv{block}.weight"], padding=1)
        deviation_C = (kept[f"norm{block}.var"] + 1e-5).sqrt()
        x_BCHW = (x_BCHW - kept[f"norm{block}.mean"][:, None, None]) / deviation_C[:, None, None]
        x_BCHW = x_BCHW * params[f"norm{block}.scale"][:, None, None] + params[f"norm{block}.shift"][:, None, None]
        x_BCHW = F.max_pool2d(x_BCHW.clamp(min=0), 2)
    z_BD = baseline.features(params, kept, images_BCHW)
    torch.testing.assert_close(z_BD[2], x_BCHW.flatten(), rtol=1e-10, atol=1e-10)
    assert all(torch.equal(kept[name], before[name]) for name in kept)


def test_the_running_statistics_move_by_a_tenth_towards_the_mean_of_what_the_batches_had():
    kept = {"norm1.mean": torch.tensor([1.0, 2.0])}
    baseline.remember(kept, [{"norm1.mean": torch.tensor([3.0, 2.0])}, {"norm1.mean": torch.tensor([5.0, -2.0])}])
    torch.testing.assert_close(kept["norm1.mean"], torch.tensor([0.9 * 1 + 0.1 * 4, 0.9 * 2 + 0.1 * 0]))


# The classifier of training


def test_cosines_are_scaled_and_know_no_length():
    """Features (3, 4) and weights along x, y and against both: cosines .6, .8 and -.7 sqrt(2), times 2."""
    params = {"head.weight": torch.tensor([[5.0, 0.0], [0.0, 0.1], [-1.0, -1.0]]), "head.scale": torch.tensor(2.0)}
    for length in (1.0, 10.0):
        logits_BM = baseline.logits("cosine", params, length * torch.tensor([[3.0, 4.0]]))
        torch.testing.assert_close(logits_BM, torch.tensor([[1.2, 1.6, -1.4 * math.sqrt(2)]]))


@pytest.mark.parametrize(("classifier", "head"), [("linear", "head.bias"), ("cosine", "head.scale")])
def test_each_classifier_has_a_weight_for_each_class_and_what_is_its_own(classifier: str, head: str):
    params = drawn_params(classifier)
    assert {name for name in params if name.startswith("head")} == {"head.weight", head}
    assert params["head.weight"].shape == (CLASSES, FILTERS)
    assert not [name for name in baseline.init("cosine", filters=2, classes=None, generator=torch.Generator())
                if name.startswith("head")]  # fmt: skip


@pytest.mark.parametrize("classifier", ["linear", "cosine"])
def test_the_gradient_is_that_of_the_mean_loss_by_finite_differences(classifier: str):
    params, batch = drawn_params(classifier), drawn_batch()
    baseline.backward(classifier, params, batch, of=len(batch))

    def loss() -> float:
        losses = []
        for images_BCHW, labels_B in zip(batch.images_GBCHW, batch.labels_GB, strict=True):
            z_BD = baseline.features(params, statistics(), images_BCHW, training=True)
            losses.append(F.cross_entropy(baseline.logits(classifier, params, z_BD), labels_B).item())
        return sum(losses) / len(losses)

    with torch.no_grad():
        for name, param in params.items():
            flat, at = param.view(-1), param.numel() // 2
            before = flat[at].item()
            ends = []
            for shift in (1e-6, -1e-6):
                flat[at] = before + shift
                ends.append(loss())
            flat[at] = before
            assert param.grad is not None
            assert param.grad.view(-1)[at].item() == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-4, abs=1e-7), name


def test_the_parts_of_a_step_add_up_to_the_whole():
    whole, parts = drawn_params(), drawn_params()
    batch = drawn_batch(3)
    scores_G, kept = baseline.backward("linear", whole, batch, of=3)
    found = [baseline.backward("linear", parts, batch[cut], of=3) for cut in (slice(0, 1), slice(1, 3), slice(3, 3))]
    for name, param in whole.items():
        torch.testing.assert_close(parts[name].grad, param.grad, rtol=1e-10, atol=1e-12)
    assert found[2] == ({}, [])
    torch.testing.assert_close(torch.cat([scores["loss"] for scores, _ in found[:2]]), scores_G["loss"])
    assert [one["norm1.mean"].tolist() for _, part in found for one in part] == [k["norm1.mean"].tolist() for k in kept]


def test_accuracy_is_the_share_of_a_batch_that_is_named_rightly():
    params = drawn_params()
    with torch.no_grad():
        params["head.weight"].zero_()
        params["head.bias"][1] = 1.0  # all are named the second class: of six labels 0 1 2 3 0 1 two are
    scores_G, _ = baseline.backward("linear", params, drawn_batch(1), of=1)
    assert scores_G["accuracy"].tolist() == [pytest.approx(2 / 6)]
    assert scores_G["loss"].tolist() == [pytest.approx(math.log(3 + math.e) - 2 / 6)]


# The head of a task


def test_the_nearest_head_takes_the_nearest_mean_and_the_cosine_that_of_the_same_direction():
    """Means (10, 0) and (0, 1) of features; (1, 0.5) is nearer to the second, and points to the first."""
    z_support_TNKD = torch.tensor([[[[9.0, 0.0], [11.0, 0.0]], [[0.0, 0.5], [0.0, 1.5]]]])
    z_TBD = torch.tensor([[[1.0, 0.5]]])
    nearest_TBN = baseline.task_logits("nearest", z_support_TNKD, z_TBD)
    torch.testing.assert_close(nearest_TBN, -torch.tensor([[[81.25, 1.25]]]))
    cosine_TBN = baseline.task_logits("cosine", z_support_TNKD, z_TBD)
    torch.testing.assert_close(cosine_TBN, torch.tensor([[[2.0, 1.0]]]) / math.sqrt(5))


def test_the_cosine_head_gives_each_support_image_the_same_weight():
    """(100, 0) and (0, 1) of one class make a mean along the diagonal, not along x."""
    z_support_TNKD = torch.tensor([[[[100.0, 0.0], [0.0, 1.0]], [[-1.0, 0.0], [-1.0, 0.0]]]])
    found_TBN = baseline.task_logits("cosine", z_support_TNKD, torch.tensor([[[2.0, 2.0]]]))
    torch.testing.assert_close(found_TBN, torch.tensor([[[1.0, -1 / math.sqrt(2)]]]))


@pytest.mark.parametrize("head", ["nearest", "cosine"])
def test_tasks_are_scored_by_their_embedded_images(head: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tasks, "CPU_IMAGES_AT_ONCE", 7)  # images of several tasks go at once
    params, kept = drawn_params(), statistics()
    batch = tasks.Batch(drawn_images(3, 2, 2), drawn_images(3, 2, 5, seed=2))
    z = baseline.embedded(params, kept, batch)
    found_T = baseline.scores(head, z)["accuracy"]
    for task in range(3):
        one = {
            name: torch.stack([baseline.features(params, kept, images[task, way]) for way in range(2)])
            for name, images in (("support", batch.support_TNKCHW), ("query", batch.query_TNQCHW))
        }
        logits_TBN = baseline.task_logits(head, one["support"][None], one["query"].flatten(0, 1)[None])
        right = logits_TBN[0].argmax(dim=1) == torch.tensor([0] * 5 + [1] * 5)
        assert found_T[task].item() == pytest.approx(right.double().mean().item())
    assert baseline.scores(head, baseline.embedded(params, kept, batch[:0]))["accuracy"].shape == (0,)
