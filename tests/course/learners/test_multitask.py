import math

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from torch import Tensor

from cs330ray.course.learners.recommender import descent, multitask, ranking, ratings
from cs330ray.course.learners.recommender.multitask import Multitask, Weights
from cs330ray.course.learners.recommender.ratings import Rated, Ratings

USERS, ITEMS, DIM, LAYERS, BATCH = 7, 9, 4, [5, 3], 20
FORMS = [
    ("shared", "sigmoid", None, 0.0),
    ("separate", "bpr", None, 0.0),
    ("shared", "bpr", 3.5, 0.3),
    ("separate", "sigmoid", 3.5, 0.3),
]
each_form = pytest.mark.parametrize(("sharing", "pairwise", "mean_stars", "dropout"), FORMS)


def drawn_params(sharing: str = "shared", mean_stars: float | None = None, seed: int = 0) -> dict[str, Tensor]:
    """No value is zero, so that each takes part."""
    generator = torch.Generator().manual_seed(seed)
    params = multitask.init(
        users=USERS, items=ITEMS, dim=DIM, layers=LAYERS, sharing=sharing, std=1.0, mean_stars=mean_stars,
        generator=generator,
    )  # fmt: skip
    return {
        name: (param + 0.3 * torch.randn(param.shape, generator=generator)).double() for name, param in params.items()
    }


def drawn_batch(seed: int = 0) -> tuple[Ratings, Tensor]:
    """Users and items come up several times."""
    generator = torch.Generator().manual_seed(seed)
    users_B, items_B, negatives_B = (
        torch.randint(size, (BATCH,), generator=generator) for size in (USERS, ITEMS, ITEMS)
    )
    stars_B = torch.randint(1, 6, (BATCH,), generator=generator).double()
    return Ratings(users_B, items_B, stars_B), negatives_B


def joint_loss(told: Multitask, *arguments) -> Tensor:
    factorization, regression = multitask.loss(told, *arguments)
    return told.factorization_weight * factorization + told.regression_weight * regression


def gradients(told: Multitask, params: dict[str, Tensor], *arguments) -> dict[str, Tensor]:
    grads = {name: torch.zeros_like(param) for name, param in params.items()}
    descent.backward(told, params, grads, *arguments)
    return grads


# The heads and their losses


def test_the_heads_compute_what_their_equations_say():
    params = {
        "user": torch.tensor([[0.0, 0.0], [1.0, 2.0]]),
        "item": torch.tensor([[3.0, 1.0], [0.0, 0.0]]),
        "user_bias": torch.tensor([0.0, 10.0]),
        "item_bias": torch.tensor([100.0, 0.0]),
        "layer1.weight": torch.tensor([[1.0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1.0, 1.0], [0, 0, -1.0, 0, 0, 0]]),
        "layer1.bias": torch.tensor([0.5, 0.0, 0.0]),
        "layer2.weight": torch.tensor([[2.0, 1.0, 50.0]]),
        "layer2.bias": torch.tensor([0.25]),
    }
    user, item = torch.tensor([1]), torch.tensor([0])
    assert multitask.scores(params, user, item).item() == 1 * 3 + 2 * 1 + 10 + 100
    # hidden: u_1 + .5 = 1.5; the products 1 * 3 and 2 * 1 sum to 5; -q_1 = -3 is cut to 0
    assert multitask.stars(params, user, item).item() == 2 * 1.5 + 5 + 0.25


def test_all_scores_are_those_of_every_pair():
    params = drawn_params()
    users, items = torch.cartesian_prod(torch.arange(USERS), torch.arange(ITEMS)).unbind(1)
    torch.testing.assert_close(
        ranking.all_scores(params).flatten(), multitask.scores(params, users, items), rtol=1e-12, atol=1e-12
    )


def test_separate_heads_read_their_own_tables_and_shared_ones_the_same():
    params, pair = drawn_params("separate"), (torch.tensor([2]), torch.tensor([3]))
    shared = {name: param for name, param in params.items() if not name.startswith("regression")}
    moved = params | {"user": params["user"] + 1, "item": params["item"] + 1}
    assert multitask.stars(params, *pair) == multitask.stars(moved, *pair) != multitask.stars(shared, *pair)
    assert multitask.scores(params, *pair) == multitask.scores(shared, *pair) != multitask.scores(moved, *pair)


def test_the_regression_biases_of_user_and_item_are_added_to_the_net_s_output():
    params, pair = drawn_params("shared", mean_stars=3.5), (torch.tensor([2]), torch.tensor([3]))
    plain = {name: param for name, param in params.items() if not name.startswith("regression")}
    added = params["regression_user_bias"][2] + params["regression_item_bias"][3]
    assert multitask.stars(params, *pair).item() == pytest.approx((multitask.stars(plain, *pair) + added).item())


@pytest.mark.parametrize(
    ("pairwise", "expected"), [("sigmoid", 1 - 1 / (1 + math.exp(-2))), ("bpr", -math.log(1 / (1 + math.exp(-2))))]
)
def test_the_pairwise_loss_of_a_margin_of_two_is_that_of_its_formula(pairwise, expected):
    params = drawn_params() | {"user": torch.zeros(USERS, DIM).double(), "item_bias": torch.arange(ITEMS).double()}
    pair = Ratings(torch.tensor([1]), torch.tensor([5]), torch.tensor([3.0]).double())
    found, _ = multitask.loss(Multitask(pairwise, 1.0, 0.0), params, pair, torch.tensor([3]))
    assert found.item() == pytest.approx(expected)


def test_the_regression_loss_is_the_mean_squared_error():
    params, (batch, negatives_B) = drawn_params(), drawn_batch()
    _, found = multitask.loss(Multitask("bpr", 0.5, 0.5), params, batch, negatives_B)
    errors = multitask.stars(params, batch.users_B, batch.items_B) - batch.stars_B
    assert found.item() == pytest.approx(sum(error.item() ** 2 for error in errors) / BATCH)


# The gradient


@each_form
def test_the_gradient_is_that_of_autograd(sharing, pairwise, mean_stars, dropout):
    told, (batch, negatives_B) = Multitask(pairwise, 0.7, 0.4, dropout), drawn_batch()
    params = {name: param.requires_grad_() for name, param in drawn_params(sharing, mean_stars).items()}
    masks = descent.dropout_masks(told, params, BATCH, torch.Generator().manual_seed(1))
    joint_loss(told, params, batch, negatives_B, masks).backward()
    with torch.no_grad():
        found = gradients(told, params, batch, negatives_B, masks)
    for name, param in params.items():
        expected = torch.zeros_like(param) if param.grad is None else param.grad
        torch.testing.assert_close(found[name], expected, rtol=1e-12, atol=1e-12)


@each_form
def test_the_gradient_is_that_of_finite_differences(sharing, pairwise, mean_stars, dropout):
    told, (batch, negatives_B), params = Multitask(pairwise, 0.7, 0.4, dropout), drawn_batch(), drawn_params(sharing)
    masks = descent.dropout_masks(told, params, BATCH, torch.Generator().manual_seed(1))
    found = gradients(told, params, batch, negatives_B, masks)
    generator, h = torch.Generator().manual_seed(5), 1e-6
    direction = {name: torch.randn(p.shape, generator=generator, dtype=torch.float64) for name, p in params.items()}

    def loss_at(t: float) -> float:
        moved = {name: param + t * direction[name] for name, param in params.items()}
        return joint_loss(told, moved, batch, negatives_B, masks).item()

    slope = sum((found[name] * direction[name]).sum().item() for name in params)
    assert slope == pytest.approx((loss_at(h) - loss_at(-h)) / (2 * h), rel=1e-6)


def test_backward_reports_both_losses_and_adds_to_what_the_gradients_hold():
    told, (batch, negatives_B), params = Multitask("bpr", 0.7, 0.4), drawn_batch(), drawn_params()
    grads = gradients(told, params, batch, negatives_B)
    once = {name: grad.clone() for name, grad in grads.items()}
    found = descent.backward(told, params, grads, batch, negatives_B)
    assert torch.stack(found).tolist() == pytest.approx(
        torch.stack(multitask.loss(told, params, batch, negatives_B)).tolist()
    )
    for name, grad in grads.items():
        torch.testing.assert_close(grad, 2 * once[name], rtol=1e-12, atol=1e-12)


def test_the_heads_of_separate_tables_learn_apart():
    (batch, negatives_B), params = drawn_batch(), drawn_params("separate")
    of_factorization = gradients(Multitask("bpr", 1.0, 0.0), params, batch, negatives_B)
    of_regression = gradients(Multitask("bpr", 0.0, 1.0), params, batch, negatives_B)
    for name in ("user", "item", "item_bias"):
        assert of_factorization[name].any()
        assert not of_regression[name].any()
    for name in ("regression_user", "regression_item", "layer1.weight", "layer3.bias"):
        assert of_regression[name].any()
        assert not of_factorization[name].any()


# Training


def test_one_batch_overfits_to_zero_loss():
    """The drawn items are ones that their users have not rated, and no pair has two ratings."""
    users_B, items_B = torch.arange(6), torch.tensor([0, 1, 2, 3, 4, 5])
    batch, negatives_B = Ratings(users_B, items_B, torch.tensor([1.0, 5, 2, 4, 3, 1])), (items_B + 1) % ITEMS
    drawn = multitask.init(
        users=USERS, items=ITEMS, dim=8, layers=[16], sharing="separate", std=0.3, mean_stars=3.0,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    weights = Weights.of(drawn)
    optimizer = torch.optim.Adam([weights.flat], lr=0.03)
    for _ in range(300):
        weights.flat.grad.zero_()
        found = descent.backward(Multitask("sigmoid", 0.5, 0.5), weights.params, weights.grads, batch, negatives_B)
        optimizer.step()
    assert all(loss.item() < 1e-3 for loss in found)


@pytest.mark.parametrize(("sharing", "candidates"), [("shared", 1), ("separate", 1), ("separate", 4)])
def test_an_epoch_is_that_of_autograd_and_adam_over_the_same_batches(sharing, candidates):
    told, (ratings, _) = Multitask("sigmoid", 0.7, 0.4, candidates=candidates), drawn_batch()
    drawn = drawn_params(sharing)
    plain = {name: param.clone().requires_grad_() for name, param in drawn.items()}
    plain_optimizer = torch.optim.Adam(plain.values(), lr=0.01, weight_decay=0.1)
    losses = []
    for batch, candidates_BJ in descent.batches(
        ratings, items=ITEMS, batch=8, candidates=candidates, generator=torch.Generator().manual_seed(2)
    ):
        negatives_B = torch.tensor(literal_hardest(plain, batch, candidates_BJ, ratings))
        plain_optimizer.zero_grad()
        joint_loss(told, plain, batch, negatives_B).backward()
        losses.append([loss.item() * len(batch) for loss in multitask.loss(told, plain, batch, negatives_B)])
        plain_optimizer.step()
    weights = Weights.of(drawn)
    optimizer = torch.optim.Adam([weights.flat], lr=0.01, weight_decay=0.1, fused=True)
    found = descent.train_epoch(told, weights, optimizer, ratings, batch=8, generator=torch.Generator().manual_seed(2))
    assert found == pytest.approx(np.sum(losses, axis=0) / BATCH)
    for name, param in plain.items():
        torch.testing.assert_close(weights.params[name], param.detach(), rtol=1e-9, atol=1e-9)


def literal_hardest(params: dict[str, Tensor], batch: Ratings, candidates_BJ: Tensor, ratings: Ratings) -> list[int]:
    """Of each row the item with the highest score, pair by pair; a rated one only where none is left."""
    rated = set(zip(ratings.users_B.tolist(), ratings.items_B.tolist(), strict=True))
    chosen = []
    for user, candidates in zip(batch.users_B.tolist(), candidates_BJ.tolist(), strict=True):
        left = [item for item in candidates if (user, item) not in rated] or candidates[:1]
        score = {item: multitask.scores(params, torch.tensor([user]), torch.tensor([item])).item() for item in left}
        chosen.append(candidates[0] if len(candidates) == 1 else max(left, key=score.__getitem__))
    return chosen


@pytest.mark.parametrize("table_bytes", [0, 1000])
def test_the_hardest_candidate_is_the_best_scored_that_the_user_has_not_rated(table_bytes, monkeypatch):
    monkeypatch.setattr(ratings, "TABLE_BYTES", table_bytes)
    params = drawn_params()
    given = Ratings(*(torch.arange(USERS).repeat_interleave(4), torch.arange(USERS * 4) % ITEMS, torch.ones(USERS * 4)))
    rated = Rated.of(given, users=USERS, items=ITEMS)
    assert (rated.table_UI is None) == (table_bytes == 0)
    candidates_BJ = torch.randint(ITEMS, (len(given), 3), generator=torch.Generator().manual_seed(0))
    candidates_BJ[0] = given.items_B[0]  # nothing but what this user has rated
    found = descent.hardest(params, given, candidates_BJ, rated)
    assert found.tolist() == literal_hardest(params, given, candidates_BJ, given)
    assert found[0] == given.items_B[0]
    assert torch.equal(descent.hardest(params, given, candidates_BJ[:, :1], None), candidates_BJ[:, 0])


@pytest.mark.parametrize("table_bytes", [0, 1000])
def test_who_rated_what_is_the_same_by_a_table_and_by_pairs_in_order(table_bytes, monkeypatch):
    monkeypatch.setattr(ratings, "TABLE_BYTES", table_bytes)
    given, _ = drawn_batch()
    rated = Rated.of(given, users=USERS, items=ITEMS)
    pairs = set(zip(given.users_B.tolist(), given.items_B.tolist(), strict=True))
    every_UI = torch.arange(ITEMS).expand(USERS, ITEMS)
    expected = [[(user, item) in pairs for item in range(ITEMS)] for user in range(USERS)]
    assert rated.has(torch.arange(USERS), every_UI).tolist() == expected


def test_an_epoch_is_the_same_to_the_last_bit_however_it_is_known_who_rated_what(monkeypatch):
    told, (given, _) = Multitask("bpr", 0.7, 0.4, candidates=4), drawn_batch()
    found = []
    for table_bytes in (0, 1000):
        monkeypatch.setattr(ratings, "TABLE_BYTES", table_bytes)
        weights = Weights.of(drawn_params())
        optimizer = torch.optim.Adam([weights.flat], lr=0.01, fused=True)
        descent.train_epoch(told, weights, optimizer, given, batch=8, generator=torch.Generator().manual_seed(2))
        found.append(weights.flat)
    assert torch.equal(*found)


def test_memory_for_who_rated_what_grows_with_the_ratings_and_not_with_users_times_items():
    """A table of these would have 10^12 places."""
    pairs = torch.arange(1000)
    rated = Rated.of(Ratings(pairs * 999, pairs * 997, torch.ones(1000)), users=10**6, items=10**6)
    assert rated.has(torch.tensor([999, 999]), torch.tensor([[997, 998], [997, 0]])).tolist() == [[True, False]] * 2


def test_the_batches_of_an_epoch_hold_every_rating_once_in_another_order_each_time():
    ratings = Ratings(torch.arange(100), torch.arange(100) + 1000, torch.arange(100) / 10)
    generator, orders = torch.Generator().manual_seed(0), []
    for _ in range(2):
        parts = [batch for batch, _ in descent.batches(ratings, items=9, batch=32, generator=generator)]
        assert [len(part) for part in parts] == [32, 32, 32, 4]
        users_B, items_B, stars_B = (
            torch.cat([getattr(part, name) for part in parts]) for name in ("users_B", "items_B", "stars_B")
        )
        assert torch.equal(items_B, users_B + 1000)
        assert torch.equal(stars_B, users_B / 10)
        assert sorted(users_B.tolist()) == list(range(100))
        orders.append(users_B.tolist())
    assert orders[0] != orders[1] != list(range(100))


def test_items_are_drawn_uniformly_over_all():
    ratings = Ratings(*(torch.zeros(9000, dtype=torch.int64) for _ in range(3)))
    ((_, drawn_B1),) = descent.batches(ratings, items=9, batch=9000, generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(drawn_B1.squeeze(1), minlength=9)
    assert len(counts) == 9
    assert (counts - 1000).abs().max() < 4 * math.sqrt(1000)  # four standard deviations


def test_dropout_keeps_its_share_and_the_expected_value():
    params = drawn_params() | {"layer1.bias": torch.zeros(400), "layer2.bias": torch.zeros(30)}
    masks = descent.dropout_masks(Multitask("bpr", 0.5, 0.5, 0.2), params, 500, torch.Generator().manual_seed(0))
    assert [tuple(mask.shape) for mask in masks] == [(500, 400), (500, 30)]
    assert sorted(masks[0].unique().tolist()) == [0, 1.25]
    assert masks[0].mean().item() == pytest.approx(1, abs=0.01)
    assert descent.dropout_masks(Multitask("bpr", 0.5, 0.5), params, 500, torch.Generator()) == []


def test_the_first_parameters_are_drawn_as_said():
    params = multitask.init(
        users=400, items=500, dim=32, layers=[64], sharing="separate", std=0.1, mean_stars=3.5,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    for name, rows in (("user", 400), ("item", 500), ("regression_user", 400), ("regression_item", 500)):
        assert params[name].shape == (rows, 32)
        assert params[name].std().item() == pytest.approx(0.1, rel=0.03)
    assert not torch.equal(params["user"], params["regression_user"])
    for name in ("user_bias", "item_bias", "regression_user_bias", "regression_item_bias"):
        assert not params[name].any()
    assert params["layer1.weight"].shape == (64, 96)
    assert params["layer1.weight"].abs().max().item() == pytest.approx(96**-0.5, rel=0.01)
    assert params["layer2.bias"].item() == 3.5


def test_an_optimiser_that_moves_the_one_tensor_moves_every_parameter():
    params = drawn_params("separate")
    weights = Weights.of(params)
    for grad in weights.grads.values():
        grad += 1
    torch.optim.SGD([weights.flat], lr=0.5).step()
    assert len(weights.flat) == sum(param.numel() for param in params.values())
    for name, param in params.items():
        assert torch.equal(weights.params[name], param - 0.5)


# Ranking


def test_reciprocal_ranks_by_hand():
    """Four users, five items. Known items leave the ranking; ties share the mean of their ranks."""
    scores_UI = torch.tensor([[5.0, 4, 3, 2, 1], [1, 1, 1, 0, 2], [9, 8, 7, 6, 5], [0, 0, 0, 0, 0]])
    known = Ratings(torch.tensor([0, 0, 2]), torch.tensor([0, 2, 1]), torch.zeros(3))
    held_out = Ratings(torch.tensor([0, 1, 0, 3, 1]), torch.tensor([1, 0, 4, 2, 3]), torch.zeros(5))
    # user 0: items 0 and 2 are known; of 1, 3, 4 item 1 is first, item 4 third. user 1: item 0 shares ranks 2, 3, 4,
    # item 3 is fifth. user 2 has nothing held out. user 3: all five share rank 3.
    params = scoring(scores_UI)
    assert ranking.ranks(params, held_out, known).tolist() == [1, 3, 3, 3, 5]
    scored = ranking.evaluate(params, held_out, known)
    assert scored["mrr"].tolist() == pytest.approx([(1 + 1 / 3) / 2, (1 / 3 + 1 / 5) / 2, 1 / 3])
    assert scored["mrr_first"].tolist() == pytest.approx([1, 1 / 3, 1 / 3])


def scoring(scores_UI: Tensor) -> dict[str, Tensor]:
    """Parameters under which the factorization head scores so."""
    users, items = scores_UI.shape
    net = multitask.init(
        users=users, items=items, dim=items, layers=[2], sharing="separate", std=1.0, mean_stars=None,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    return net | {"user": scores_UI, "item": torch.eye(items)}


def drawn_evaluation(seed: int) -> tuple[dict[str, Tensor], Ratings, Ratings]:
    """Scores with many ties, and disjoint known and held-out pairs; some users have none of either."""
    generator = torch.Generator().manual_seed(seed)
    users, items = 30, 40
    params = scoring(torch.randint(6, (users, items), generator=generator).float())
    pairs = torch.randperm(users * items, generator=generator)[:400]
    pairs = pairs[pairs // items != 3]
    stars_B = torch.randint(1, 6, (len(pairs),), generator=generator).float()
    ratings = Ratings(pairs // items, pairs % items, stars_B)
    return params, ratings[slice(60)], ratings[slice(60, None)]


def reference_evaluation(params: dict[str, Tensor], held_out: Ratings, known: Ratings) -> dict[str, list[float]]:
    """User by user, as the course's code does it: known items get the worst score, scipy ranks."""
    mrr, mrr_first, squared = [], [], []
    for user in sorted(set(held_out.users_B.tolist())):
        order_I = [-(params["user"][user] * item).sum().item() for item in params["item"]]
        for item in known.items_B[known.users_B == user].tolist():
            order_I[item] = np.inf
        rank_I = scipy.stats.rankdata(order_I)
        reciprocal = [1 / rank_I[item] for item in held_out.items_B[held_out.users_B == user].tolist()]
        mrr.append(sum(reciprocal) / len(reciprocal))
        mrr_first.append(max(reciprocal))
    for user, item, stars in zip(held_out.users_B, held_out.items_B, held_out.stars_B, strict=True):
        u, q = params["regression_user"][user], params["regression_item"][item]
        hidden = F.relu(params["layer1.weight"] @ torch.cat([u, q, u * q]) + params["layer1.bias"])
        squared.append((params["layer2.weight"] @ hidden + params["layer2.bias"] - stars).item() ** 2)
    return {"mse": squared, "mrr": mrr, "mrr_first": mrr_first}


@pytest.mark.parametrize("pairs_at_once", [1, 7, 1000])
@pytest.mark.parametrize("scores_at_once", [1, 40 * 7, 40 * 30, 10**6])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_evaluation_of_all_users_at_once_is_that_of_one_after_another(
    seed, scores_at_once, pairs_at_once, monkeypatch
):
    monkeypatch.setattr(ranking, "PAIRS_AT_ONCE", pairs_at_once)
    monkeypatch.setattr(ranking, "SCORES_AT_ONCE", scores_at_once)
    monkeypatch.setattr(ranking, "STARS_AT_ONCE", pairs_at_once)
    arguments = drawn_evaluation(seed)
    found, expected = ranking.evaluate(*arguments), reference_evaluation(*arguments)
    assert found.keys() == expected.keys()
    for name, values in found.items():
        assert values.tolist() == pytest.approx(expected[name], rel=1e-4)


def test_another_held_out_item_of_the_user_stays_in_the_ranking():
    scores_UI = torch.tensor([[3.0, 2, 1]])
    nothing = Ratings(*(torch.zeros(0, dtype=torch.int64) for _ in range(3)))
    both = Ratings(torch.tensor([0, 0]), torch.tensor([0, 1]), torch.zeros(2))
    assert ranking.ranks(scoring(scores_UI), both, nothing).tolist() == [1, 2]


@pytest.mark.parametrize("scores_at_once", [3, 300])
def test_ranking_leaves_the_parameters_as_they_were(scores_at_once, monkeypatch):
    monkeypatch.setattr(ranking, "SCORES_AT_ONCE", scores_at_once)
    params = scoring(torch.tensor([[3.0, 2, 1], [1, 2, 3]]))
    before = {name: param.clone() for name, param in params.items()}
    ranking.ranks(params, Ratings(*(torch.tensor([0]),) * 3), Ratings(*(torch.tensor([0]), *(torch.tensor([1]),) * 2)))
    assert all(torch.equal(params[name], param) for name, param in before.items())


def test_no_more_scores_are_held_at_once_than_a_block_has(monkeypatch):
    monkeypatch.setattr(ranking, "SCORES_AT_ONCE", 40 * 7)
    sizes, all_scores = [], ranking.all_scores

    def spy(*given):
        sizes.append(all_scores(*given).numel())
        return all_scores(*given)

    monkeypatch.setattr(ranking, "all_scores", spy)
    ranking.evaluate(*drawn_evaluation(0))
    assert len(sizes) == 5  # of 30 users, 7 at once
    assert max(sizes) == 40 * 7
