import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cs330ray.course.learners import mann
from cs330ray.course.learners.mann import Batch, Mann

TASKS, WAYS, SHOTS, HIDDEN, FILTERS, SIDE = 4, 3, 2, 5, 4, 8
SUPPORT = SHOTS * WAYS
MODULES = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}
CELLS = ["lstm", "gru", "rnn"]
ENCODERS = ["none", "conv"]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The nets are tiny, and the machine may be busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def drawn_batch(dtype: torch.dtype = torch.float64, seed: int = 0, tasks: int = TASKS) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images_LTCHW = torch.rand(SUPPORT + WAYS, tasks, 1, SIDE, SIDE, generator=generator, dtype=torch.float64)
    labels_TN = torch.rand(tasks, WAYS, generator=generator).argsort(dim=1)
    return Batch(images_LTCHW.to(dtype), labels_TN)


def drawn_params(net: Mann, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """As they are drawn, with biases that are not zero."""
    generator = torch.Generator().manual_seed(3)
    params = mann.init(net, hidden=HIDDEN, ways=WAYS, filters=FILTERS, generator=generator, side=SIDE)
    for name, param in params.items():
        if "bias" in name:
            param.normal_(std=0.2, generator=generator)
    return {name: param.to(dtype).requires_grad_() for name, param in params.items()}


def reference_logits(net: Mann, params: dict[str, Tensor], batch: Batch) -> Tensor:
    """Torch's own recurrent layers, one after the other, on images beside one-hot labels."""
    images_BCHW = batch.images_LTCHW.flatten(0, 1)
    if net.encoder == "conv":
        for block in (1, 2, 3):
            weight, bias = params[f"conv{block}.weight"], params[f"conv{block}.bias"]
            images_BCHW = F.relu(F.conv2d(F.pad(images_BCHW, (1, 1, 1, 1)), weight, bias, stride=2))
    length, tasks = batch.images_LTCHW.shape[:2]
    labels_LN = torch.zeros(length, WAYS, dtype=images_BCHW.dtype)
    for at in range(SUPPORT):
        labels_LN[at, at % WAYS] = 1
    x = torch.cat([images_BCHW.reshape(length, tasks, -1), labels_LN[:, None].expand(-1, tasks, -1)], dim=2)
    for layer in range(1, net.layers + 2):
        inputs = ("weight_image", "weight_label") if layer == 1 else ("weight_input",)
        weight_ih = torch.cat([params[f"layer{layer}.{name}"] for name in inputs], dim=1)
        weight_hh = params[f"layer{layer}.weight_hidden"]
        biases = params[f"layer{layer}.bias_input"], params[f"layer{layer}.bias_hidden"]
        module = MODULES[net.cell](weight_ih.shape[1], weight_hh.shape[1], dtype=x.dtype)
        values = dict(
            zip([name for name, _ in module.named_parameters()], (weight_ih, weight_hh, *biases), strict=True)
        )
        x, _ = torch.func.functional_call(module, values, x)
    return x[SUPPORT:].transpose(0, 1)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_outputs_and_gradients_are_those_of_torch_s_recurrent_layers(cell, layers, encoder, dtype, tolerance):
    net = Mann(cell, layers, encoder)
    batch, params = drawn_batch(dtype), drawn_params(net, dtype)
    expected_TNN = reference_logits(net, params, batch)
    expected = torch.autograd.grad(
        F.cross_entropy(expected_TNN.flatten(0, 1), batch.labels_TN.flatten()), params.values()
    )
    logits_TNN = mann.logits(net, params, batch)
    found = torch.autograd.grad(mann.losses(logits_TNN, batch.labels_TN).mean(), params.values())
    torch.testing.assert_close(logits_TNN, expected_TNN, rtol=0, atol=tolerance)
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("cell", CELLS)
def test_gradients_are_those_of_finite_differences(cell, encoder):
    net, batch = Mann(cell, 2, encoder), drawn_batch(tasks=2)
    params = drawn_params(net)
    names = list(params)

    def losses_T(*values: Tensor) -> Tensor:
        return mann.losses(mann.logits(net, dict(zip(names, values, strict=True)), batch), batch.labels_TN)

    assert torch.autograd.gradcheck(losses_T, tuple(params.values()), fast_mode=True)


def test_the_gradient_by_an_image_is_that_of_finite_differences():
    """An encoder before the memory learns by it."""
    net, batch = Mann(), drawn_batch(tasks=2)
    params = drawn_params(net)

    def losses_T(images_LTCHW: Tensor) -> Tensor:
        return mann.losses(mann.logits(net, params, replace(batch, images_LTCHW=images_LTCHW)), batch.labels_TN)

    assert torch.autograd.gradcheck(losses_T, batch.images_LTCHW.requires_grad_(), fast_mode=True)


@pytest.mark.parametrize("cell", CELLS)
def test_the_labels_of_the_queries_are_seen_by_the_loss_alone(cell):
    net, batch = Mann(cell), drawn_batch()
    params = drawn_params(net)
    other = replace(batch, labels_TN=batch.labels_TN.roll(1, dims=1))
    one_TNN, other_TNN = mann.logits(net, params, batch), mann.logits(net, params, other)
    assert torch.equal(one_TNN, other_TNN)
    assert not torch.allclose(mann.losses(one_TNN, batch.labels_TN), mann.losses(other_TNN, other.labels_TN))


@pytest.mark.parametrize("cell", CELLS)
def test_other_labels_of_the_support_make_other_outputs(cell):
    """A permutation of the label weights' columns is one of the support's labels, the images where they were."""
    net, batch = Mann(cell), drawn_batch()
    params = drawn_params(net)
    before_TNN = mann.logits(net, params, batch)
    after_TNN = mann.logits(net, params | {"layer1.weight_label": params["layer1.weight_label"].roll(1, dims=1)}, batch)
    assert (before_TNN - after_TNN).abs().amin(dim=2).min() > 1e-6


def test_every_label_of_the_support_is_seen():
    net, batch = Mann(), drawn_batch()
    params = drawn_params(net)
    losses_T = mann.losses(mann.logits(net, params, batch), batch.labels_TN)
    (slope_GN,) = torch.autograd.grad(losses_T.sum(), params["layer1.weight_label"])
    assert (slope_GN.abs().sum(dim=0) > 0).all()


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("cell", CELLS)
def test_what_is_said_of_a_query_hangs_on_its_task_up_to_it_and_on_nothing_else(cell, encoder):
    net, batch = Mann(cell, 2, encoder), drawn_batch()
    params = drawn_params(net)
    images_LTCHW = batch.images_LTCHW.clone()
    images_LTCHW[SUPPORT + 1, 2] = drawn_batch(seed=9).images_LTCHW[0, 0]  # the second query of the third task
    before_TNN, after_TNN = (
        mann.logits(net, params, other) for other in (batch, replace(batch, images_LTCHW=images_LTCHW))
    )
    changed_TN = (before_TNN - after_TNN).abs().amax(dim=2) > 1e-12
    assert changed_TN.nonzero().tolist() == [[2, 1], [2, 2]]


# At best the right output is 1 and the others are -1. But an LSTM's cell that changes its sign from one query to the
# next has forgotten all and been written once: it ends at 1 or -1, and what it puts out at tanh(1) or -tanh(1).
FIRST = math.log(1 + (WAYS - 1) * math.exp(-2))
LATER = math.log(1 + math.exp(-2 * math.tanh(1)) + (WAYS - 2) * math.exp(-1 - math.tanh(1)))


@pytest.mark.parametrize(("cell", "lowest"), [("lstm", (FIRST + 2 * LATER) / 3), ("gru", FIRST), ("rnn", FIRST)])
def test_one_batch_is_learned_by_heart_down_to_the_lowest_loss_that_the_cell_can_reach(cell, lowest):
    net, batch = Mann(cell), drawn_batch(torch.float32)
    drawn = mann.init(net, hidden=16, ways=WAYS, filters=1, generator=torch.Generator().manual_seed(0), side=SIDE)
    params = {name: param.requires_grad_() for name, param in drawn.items()}
    optimizer = torch.optim.Adam(params.values(), lr=0.02)
    for _ in range(250):
        optimizer.zero_grad()
        logits_TNN = mann.logits(net, params, batch)
        loss = mann.losses(logits_TNN, batch.labels_TN).mean()
        loss.backward()
        optimizer.step()
    assert mann.accuracies(logits_TNN, batch.labels_TN).tolist() == [1.0] * TASKS
    assert FIRST <= loss.item() < lowest + 0.01


@pytest.mark.parametrize("cell", CELLS)
def test_weights_begin_orthogonal_and_xavier_and_biases_at_zero(cell):
    hidden, gates = 12, {"lstm": 4, "gru": 3, "rnn": 1}[cell]
    params = mann.init(
        Mann(cell, 2), hidden=hidden, ways=WAYS, filters=1, generator=torch.Generator().manual_seed(0), side=SIDE
    )
    inputs = {1: SIDE**2 + WAYS, 2: hidden, 3: hidden}
    assert params["layer1.weight_image"].shape == (gates * hidden, SIDE**2)
    assert params["layer1.weight_label"].shape == (gates * hidden, WAYS)
    for layer, width in ((1, hidden), (2, hidden), (3, WAYS)):
        recurrent = params[f"layer{layer}.weight_hidden"]
        torch.testing.assert_close(recurrent.T @ recurrent, torch.eye(width), atol=1e-5, rtol=0)
        bound = math.sqrt(6 / (inputs[layer] + gates * width))  # Glorot & Bengio 2010, eq. (16)
        for name in ("weight_image", "weight_label") if layer == 1 else ("weight_input",):
            highest = params[f"layer{layer}.{name}"].abs().max().item()
            assert 0.8 * bound < highest <= bound
        assert not any(params[f"layer{layer}.{name}"].any() for name in ("bias_input", "bias_hidden"))


def test_the_encoder_s_filters_begin_as_before_a_relu():
    generator = torch.Generator().manual_seed(0)
    params = mann.init(Mann(encoder="conv"), hidden=4, ways=WAYS, filters=12, generator=generator, side=SIDE)
    for block, channels in ((1, 1), (2, 12), (3, 12)):
        bound = math.sqrt(6 / (channels * 3 * 3))  # He et al. 2015, eq. (10), as a uniform distribution
        assert 0.9 * bound < params[f"conv{block}.weight"].abs().max().item() <= bound
        assert not params[f"conv{block}.bias"].any()


@pytest.mark.parametrize("encoder", ["none", "conv"])
def test_colours_are_seen_each_by_itself(encoder):
    """What differs in one colour alone is told apart, and so are colours that change places."""
    net, draws = Mann(encoder=encoder), torch.Generator().manual_seed(0)
    params = mann.init(net, hidden=4, ways=2, filters=3, generator=draws, side=SIDE, channels=3)
    assert params["layer1.weight_image"].shape[1] == (3 * SIDE**2 if encoder == "none" else 3)
    images = torch.rand(4, 1, 3, SIDE, SIDE, generator=draws)
    changed = images.clone()
    changed[0, :, 1] += 0.5
    labels_TN = torch.tensor([[0, 1]])
    first, other, swapped = (
        mann.logits(net, params, Batch(given, labels_TN)) for given in (images, changed, images.flip(2))
    )
    assert not torch.allclose(first, other)
    assert not torch.allclose(first, swapped)


@pytest.mark.parametrize(("side", "features"), [(28, 4 * 4), (8, 1), (9, 2 * 2)])
def test_the_encoder_halves_the_sides_three_times(side, features):
    net = Mann(encoder="conv")
    params = mann.init(net, hidden=4, ways=2, filters=3, generator=torch.Generator().manual_seed(0), side=side)
    assert params["layer1.weight_image"].shape == (16, 3 * features)
    batch = Batch(torch.rand(4, 1, 1, side, side), torch.tensor([[0, 1]]))
    assert mann.logits(net, params, batch).shape == (1, 2, 2)


def test_loss_and_accuracy_are_means_over_the_queries_of_a_task():
    logits_TNN = torch.tensor([[[0.0, 0.0], [0.0, math.log(3)]], [[math.log(4), 0.0], [0.0, 0.0]]])
    labels_TN = torch.tensor([[0, 1], [1, 0]])
    expected_T = torch.tensor([math.log(2) + math.log(4 / 3), math.log(5) + math.log(2)]) / 2
    torch.testing.assert_close(mann.losses(logits_TNN, labels_TN), expected_T)
    assert mann.accuracies(logits_TNN, labels_TN).tolist() == [1.0, 0.5]  # of equal logits the first counts as highest
