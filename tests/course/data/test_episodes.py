import pytest
import torch

from cs330ray.course.data.episodes import Classes, draw_episodes
from cs330ray.errors import SpecError


def numbered(classes, drawings):
    """Images whose two pixels say their class and their drawing."""
    images = torch.empty(classes, drawings, 1, 2, dtype=torch.uint8)
    images[:, :, 0, 0] = torch.arange(classes)[:, None]
    images[:, :, 0, 1] = torch.arange(drawings)
    return images


def draw(classes_MRHW, seed=0, **sizes):
    sizes = {"tasks": 50, "ways": 5, "shots": 2, "queries": 3} | sizes
    return draw_episodes(Classes.equal(classes_MRHW), **sizes, generator=torch.Generator().manual_seed(seed))


def read(images):
    """The classes and drawings that numbered images say."""
    numbers = (images * 255).round().long()
    return numbers[..., 0, 0, 0], numbers[..., 0, 0, 1]


def test_episodes_have_the_shapes_of_their_names():
    episodes = draw(torch.zeros(30, 20, 28, 28, dtype=torch.uint8), tasks=4, ways=5, shots=1, queries=15)
    assert episodes.support_TNKCHW.shape == (4, 5, 1, 1, 28, 28)
    assert episodes.query_TNQCHW.shape == (4, 5, 15, 1, 28, 28)
    assert episodes.classes_TN.shape == (4, 5)
    assert (episodes.support_TNKCHW.dtype, episodes.classes_TN.dtype) == (torch.float32, torch.int64)
    assert episodes.support_TNKCHW.is_contiguous()
    assert episodes.query_TNQCHW.is_contiguous()


def test_images_are_scaled_to_one():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).expand(5, 20, 1, 3)
    assert torch.equal(draw(images).query_TNQCHW[0, 0, 0, 0, 0], torch.tensor([0, 0.2, 1]))


def test_every_image_is_of_the_class_that_is_named():
    episodes = draw(numbered(40, 20))
    for images in (episodes.support_TNKCHW, episodes.query_TNQCHW):
        classes, _ = read(images)
        assert torch.equal(classes, episodes.classes_TN[..., None].expand_as(classes))


@pytest.mark.parametrize("classes", [5, 6, 200])
def test_the_classes_of_a_task_are_distinct(classes):
    for row in draw(numbered(classes, 20)).classes_TN.tolist():
        assert len(set(row)) == 5


@pytest.mark.parametrize("drawings", [5, 20])
def test_support_and_query_never_share_a_drawing(drawings):
    episodes = draw(numbered(10, drawings))
    used = torch.cat([read(episodes.support_TNKCHW)[1], read(episodes.query_TNQCHW)[1]], dim=2).flatten(0, 1)
    assert all(len(set(row)) == 5 for row in used.tolist())


def test_the_same_seed_draws_the_same_and_the_next_draw_differs():
    generators = [torch.Generator().manual_seed(7) for _ in range(2)]
    sizes = {"tasks": 8, "ways": 5, "shots": 1, "queries": 1}
    first, again = (
        draw_episodes(Classes.equal(numbered(40, 20)), **sizes, generator=generator) for generator in generators
    )
    further = draw_episodes(Classes.equal(numbered(40, 20)), **sizes, generator=generators[0])
    assert torch.equal(first.classes_TN, again.classes_TN)
    assert torch.equal(first.query_TNQCHW, again.query_TNQCHW)
    assert not torch.equal(first.classes_TN, further.classes_TN)


def test_every_class_and_drawing_is_equally_likely_in_every_place():
    """A count of n draws with probability p has deviation sqrt(n p (1 - p)); five of them bound all."""
    episodes = draw(numbered(10, 8), tasks=4000)
    classes = torch.nn.functional.one_hot(episodes.classes_TN, 10).sum(dim=0)  # place, class
    drawings = torch.nn.functional.one_hot(read(episodes.query_TNQCHW)[1], 8).sum(dim=(0, 1))  # place, drawing
    for counts, n, p in [(classes, 4000, 1 / 10), (drawings, 20000, 1 / 8)]:
        assert (counts - n * p).abs().max() < 5 * (n * p * (1 - p)) ** 0.5


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    draw(numbered(40, 20))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"ways": 11}, "ways=11, classes=10"),
        ({"shots": 10, "queries": 11}, "shots=10, queries=11, drawings=20"),
        ({"tasks": 0}, "got 0, 5, 2 and 3"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_its_numbers(sizes, message):
    with pytest.raises(SpecError, match=message):
        draw(numbered(10, 20), **sizes)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_gpu_sees_the_same_episodes():
    classes = numbered(40, 20)
    sizes = {"tasks": 8, "ways": 5, "shots": 1, "queries": 3}
    expected = draw(classes, **sizes)
    for images in (classes, classes.cuda()):
        generator = torch.Generator().manual_seed(0)
        episodes = draw_episodes(Classes.equal(images), **sizes, generator=generator, device="cuda")
        assert episodes.query_TNQCHW.is_cuda
        assert torch.equal(episodes.query_TNQCHW.cpu(), expected.query_TNQCHW)
        assert torch.equal(episodes.classes_TN.cpu(), expected.classes_TN)
