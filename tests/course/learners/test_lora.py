"""Which parameters train, the loss of answers alone, and LoRA against its own equation, on tiny models in float64."""

import math
import random
import warnings
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cs330ray.course.learners import lora
from cs330ray.course.learners.lora import IGNORED, Encoded, Tuning
from cs330ray.errors import SpecError

pytest.importorskip("peft")

CPU = torch.device("cpu")
VOCABULARY, PAD = 23, 0


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def llama(layers: int = 3, dropout: float = 0.0, seed: int = 0):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True, attention_dropout=dropout,
        pad_token_id=PAD, initializer_range=0.3,
    )  # fmt: skip
    return made(LlamaForCausalLM, config, seed)


def gpt2(layers: int = 2):
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=layers, n_head=2, n_positions=64, pad_token_id=PAD)
    return made(GPT2LMHeadModel, config, 0)


def bert(layers: int = 3):
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=layers, num_attention_heads=2,
        max_position_embeddings=64, num_labels=5, pad_token_id=PAD,
    )  # fmt: skip
    return made(BertForSequenceClassification, config, 0)


def made(kind, config, seed: int):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kind(config).double().eval()


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tuned(model, seed: int = 0, **told):
    return lora.tune(model, Tuning(**told), stream(seed))


def filled(model) -> None:
    """Give B values of its own, so that an adapter does something."""
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.data.normal_(generator=stream(3))


EXAMPLES = [
    Encoded((5, 6, 7, 8, 9, 10), answer=2),
    Encoded((4, 3, 11), answer=1),
    Encoded((12, 13, 14, 15, 16), answer=3),
    Encoded((2, 17, 18, 19, 20, 21, 22, 1), answer=2),
]
TEXTS = [Encoded((5, 6, 7), label=0), Encoded((8, 9, 10, 11, 12), label=3), Encoded((13, 14), label=4)]


def gradients(model) -> dict[str, Tensor]:
    return {name: parameter.grad.clone() for name, parameter in lora.trained(model).items()}


def whole(examples=EXAMPLES):
    return lora.collate(examples, pad=PAD, device=CPU)


# LoRA


@pytest.mark.parametrize("targets", ["attention", "mlp", "both"])
@pytest.mark.parametrize("make", [llama, gpt2, bert])
def test_lora_s_forward_is_that_of_the_matrices_merged_by_hand(make, targets):
    """W + (alpha/rank) B A, section 4.1 of Hu et al. 2021; gpt2 keeps W transposed."""
    model, plain = make(), make()
    tuned(model, rank=3, alpha=5.0, targets=targets)
    filled(model)
    merged = 0
    for name, module in model.named_modules():
        if hasattr(module, "lora_A"):
            change = 5 / 3 * module.lora_B["default"].weight @ module.lora_A["default"].weight
            target = plain.get_submodule(name)
            target.weight.data += change.data.T if make is gpt2 else change.data
            merged += 1
    ids_BL = torch.randint(1, VOCABULARY, (3, 7), generator=stream(1))
    ours, by_hand = (net.eval()(input_ids=ids_BL).logits for net in (model, plain))
    assert merged
    assert (ours - make().eval()(input_ids=ids_BL).logits).abs().max() > 1e-3  # the adapter does something
    assert (ours - by_hand).abs().max() <= 1e-10


@pytest.mark.parametrize(
    ("make", "targets", "matrices"),
    [
        (llama, "attention", {"q_proj", "k_proj", "v_proj", "o_proj"}),
        (llama, "mlp", {"gate_proj", "up_proj", "down_proj"}),
        (bert, "attention", {"query", "key", "value", "attention.output.dense"}),
        (bert, "mlp", {"intermediate.dense", "output.dense"}),
        (gpt2, "attention", {"c_attn", "attn.c_proj"}),
        (gpt2, "mlp", {"c_fc", "mlp.c_proj"}),
    ],
)
def test_each_architecture_s_matrices_get_an_adapter_in_every_block(make, targets, matrices):
    model = make()
    tuned(model, targets=targets, rank=2)
    adapted = [name for name, module in model.named_modules() if hasattr(module, "lora_A")]
    assert len(adapted) == len(matrices) * model.config.num_hidden_layers
    assert all(sum(name.endswith(f".{matrix}") for name in adapted) == model.config.num_hidden_layers
               for matrix in matrices if matrix != "output.dense")  # fmt: skip
    assert not any("attention" in name for name in adapted if targets == "mlp")


@pytest.mark.parametrize(
    ("make", "targets", "matrices"),
    [(llama, "all-linear", 7), (bert, "all-linear", 6), (gpt2, "all-linear", 4), (llama, "q_proj, mlp.up_proj", 2),
     (bert, "dense", 3), (gpt2, "c_proj", 2)],
)  # fmt: skip
def test_all_matrices_or_those_of_a_name_get_an_adapter_but_never_the_head(make, targets, matrices):
    model = make()
    tuned(model, targets=targets, rank=2)
    adapted = [name for name, module in model.named_modules() if hasattr(module, "lora_A")]
    assert len(adapted) == matrices * model.config.num_hidden_layers
    assert not any(part in name for name in adapted for part in ("pooler", "classifier", "lm_head"))


@pytest.mark.parametrize("targets", ["proj", "q_proj, nothing", "lm_head", "embed_tokens"])
def test_a_name_that_no_matrix_has_is_refused_with_those_there_are(targets):
    known = "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"
    with pytest.raises(SpecError, match=rf"names of this model's matrices \({known}\), got '"):
        tuned(llama(), targets=targets)


def test_a_new_adapter_changes_nothing_yet_and_its_a_is_drawn_as_linear_layers_are():
    model = llama()
    ids_BL = torch.randint(1, VOCABULARY, (2, 5), generator=stream())
    before = model(input_ids=ids_BL).logits
    tuned(model, rank=4)
    assert torch.equal(model.eval()(input_ids=ids_BL).logits, before)
    drawn = [parameter for name, parameter in model.named_parameters() if ".lora_A." in name]
    for parameter in drawn:  # uniform within 1/sqrt(inputs)
        assert parameter.abs().max() <= 1 / math.sqrt(parameter.shape[1])
        assert parameter.std().item() == pytest.approx(1 / math.sqrt(3 * parameter.shape[1]), rel=0.3)


def test_adapters_are_drawn_from_their_own_stream_alone():
    def first(seed: int) -> Tensor:
        model = llama()
        tuned(model, seed, rank=2)
        return torch.cat([parameter.flatten() for name, parameter in model.named_parameters() if ".lora_A." in name])

    torch.manual_seed(1)
    states = torch.get_rng_state(), random.getstate()
    one = first(0)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    torch.manual_seed(2)
    assert torch.equal(first(0), one)
    assert not torch.equal(first(1), one)


def test_lora_drops_what_goes_into_a_in_training_alone():
    model = llama()
    tuned(model, dropout=0.5, rank=2)
    filled(model)
    batch = whole()
    with torch.no_grad():
        still = [lora.logits(model.eval(), batch) for _ in range(2)]
        moving = [lora.logits(model.train(), batch) for _ in range(2)]
    assert torch.equal(*still)
    assert not torch.equal(*moving)


@pytest.mark.parametrize("make", [llama, bert])
def test_peft_reads_an_adapter_s_own_files(make, tmp_path):
    from peft import PeftModel
    from safetensors.torch import save_file

    model = make()
    adapter = tuned(model, rank=2, alpha=3.0)
    filled(model)
    for name, parameter in lora.trained(model).items():
        if "lora" not in name:
            parameter.data += 0.1  # a head that was trained
    save_file(lora.adapter_tensors(adapter), tmp_path / "adapter_model.safetensors")
    adapter.peft_config["default"].save_pretrained(str(tmp_path))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)  # peft's own call
        read = PeftModel.from_pretrained(make(), str(tmp_path)).double().eval()
    ids_BL = torch.randint(1, VOCABULARY, (2, 5), generator=stream())
    assert torch.equal(read(input_ids=ids_BL).logits, model.eval()(input_ids=ids_BL).logits)


# Which parameters


def names(model) -> set[str]:
    return set(lora.trained(model))


@pytest.mark.parametrize(
    ("method", "layers", "blocks", "trains"),
    [
        ("first", 5, 2, {0, 1}),
        ("middle", 5, 2, {1, 2}),
        ("middle", 6, 2, {2, 3}),
        ("last", 5, 2, {3, 4}),
        ("last", 5, 1, {4}),
        ("first", 2, 2, {0, 1}),
    ],
)
def test_of_some_blocks_those_train_and_nothing_else(method, layers, blocks, trains):
    model = llama(layers)
    tuned(model, method=method, blocks=blocks)
    assert {name.split(".")[2] for name in names(model)} == {str(block) for block in trains}
    assert names(model) == {name for name, _ in model.named_parameters() if name.split(".")[2] in map(str, trains)}


def test_with_all_everything_trains_and_with_lora_adapters_alone():
    model = llama()
    tuned(model, method="all")
    assert names(model) == {name for name, _ in model.named_parameters()}
    tuned(model, method="lora")
    assert all(".lora_A." in name or ".lora_B." in name for name in names(model))


@pytest.mark.parametrize("told", [{"method": "last", "blocks": 1}, {"method": "lora", "targets": "mlp"}])
def test_the_head_of_a_classifier_always_trains_with_the_pooler_before_it(told):
    model = bert()
    tuned(model, **told)
    head = {name for name in names(model) if "encoder" not in name}
    assert {name.replace(".modules_to_save.default", "") for name in head} == {
        "bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias",
    }  # fmt: skip


def test_more_blocks_than_there_are_are_refused_with_the_numbers():
    with pytest.raises(SpecError, match=r"at most 3, those of model\.layers, .*got 4"):
        tuned(llama(), method="middle", blocks=4)


@pytest.mark.parametrize("told", [{"method": "middle", "blocks": 1}, {"method": "lora", "rank": 2}])
@pytest.mark.parametrize("make", [llama, bert])
def test_what_is_frozen_is_the_same_to_the_bit_after_training_and_has_no_state(make, told):
    model = make()
    tuned(model, **told)
    params = lora.trained(model)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.Adam(params.values(), lr=0.1)
    model.train()
    for _ in range(3):
        optimizer.zero_grad()
        batch = whole(TEXTS if make is bert else EXAMPLES)
        lora.backward(model, [batch], answers=batch.answers)
        optimizer.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (name not in params)
        assert (parameter.grad is None) == (name not in params)
    assert len(optimizer.state) == len(params)


def test_the_model_s_own_dropout_can_be_set_without_lora_s():
    for model in (llama(dropout=0.2), bert()):
        lora.set_dropout(model, 0.0)
        batch = whole(TEXTS if model.config.model_type == "bert" else EXAMPLES)
        with torch.no_grad():
            assert torch.equal(lora.logits(model.train(), batch), lora.logits(model.train(), batch))
            lora.set_dropout(model, 0.5)
            assert not torch.equal(lora.logits(model.train(), batch), lora.logits(model.train(), batch))


# The loss


def test_answers_stand_at_the_end_and_all_else_has_no_label():
    batch = whole(EXAMPLES[:3])
    assert batch.ids_BL.tolist() == [[5, 6, 7, 8, 9], [PAD, PAD, PAD, 4, 3], [PAD, 12, 13, 14, 15]]
    assert batch.mask_BL.tolist() == [[1, 1, 1, 1, 1], [0, 0, 0, 1, 1], [0, 1, 1, 1, 1]]
    assert batch.labels_BK.tolist() == [[IGNORED, 9, 10], [IGNORED, IGNORED, 11], [14, 15, 16]]
    assert batch.answers == 6


def test_texts_of_classes_are_padded_behind_and_have_one_label():
    batch = whole(TEXTS)
    assert batch.ids_BL.tolist() == [[5, 6, 7, PAD, PAD], [8, 9, 10, 11, 12], [13, 14, PAD, PAD, PAD]]
    assert batch.mask_BL.sum(dim=1).tolist() == [3, 5, 2]
    assert batch.labels_BK.tolist() == [[0], [3], [4]]


@pytest.mark.parametrize("make", [llama, gpt2])
def test_the_loss_of_a_batch_is_that_of_each_example_alone_by_transformers_own_loss(make):
    """Theirs is a mean over the answer tokens of one unpadded example, in float32; ours sums and divides by all."""
    model = make()
    summed = 0.0
    for example in EXAMPLES:
        ids_1L = torch.tensor([example.ids])
        labels_1L = ids_1L.clone()
        labels_1L[:, : -example.answer] = IGNORED
        summed += model(input_ids=ids_1L, labels=labels_1L).loss.item() * example.answer
    model.requires_grad_(True)
    assert lora.backward(model, [whole()], answers=8) == pytest.approx(summed / 8, rel=1e-6)
    assert lora.scored(model, whole()).loss_B.sum().item() == pytest.approx(summed, rel=1e-6)


def test_the_loss_of_classes_is_the_mean_over_examples_by_transformers_own_loss():
    model = bert()
    summed = sum(
        model(input_ids=torch.tensor([text.ids]), labels=torch.tensor([text.label])).loss.item() for text in TEXTS
    )
    model.requires_grad_(True)
    assert lora.backward(model, [whole(TEXTS)], answers=3) == pytest.approx(summed / 3, rel=1e-12)


def test_what_stood_in_prompts_and_padding_before_masking_changes_neither_loss_nor_gradients_by_a_bit():
    found = []
    for noise in (None, 7, 19):
        model = llama()
        tuned(model, method="all")
        batch = whole()
        if noise is not None:
            ids_BL = torch.full((len(EXAMPLES), 8), noise)
            for row, example in enumerate(EXAMPLES):
                ids_BL[row, -example.answer :] = torch.tensor(example.ids[-example.answer :])
            labels_BL = lora.answers_alone(ids_BL, torch.tensor([example.answer for example in EXAMPLES]))
            batch = replace(batch, labels_BK=labels_BL[:, -3:])
            batch.ids_BL[batch.mask_BL == 0] = noise
        loss = lora.backward(model, [batch], answers=batch.answers)
        found.append((loss, gradients(model)))
    for loss, grads in found[1:]:
        assert loss == found[0][0]
        assert all(torch.equal(grad, found[0][1][name]) for name, grad in grads.items())


def test_a_prompt_s_own_tokens_are_never_predicted():
    """With the answer's ids apart, the gradient is that of the answer's log probability written out."""
    model = llama()
    tuned(model, method="all")
    example = EXAMPLES[0]
    lora.backward(model, [whole([example])], answers=2)
    ours = gradients(model)
    model.zero_grad()
    logits_LV = model(input_ids=torch.tensor([example.ids])).logits[0]
    log_p_LV = logits_LV.log_softmax(dim=-1)
    (-(log_p_LV[3, 9] + log_p_LV[4, 10]) / 2).backward()
    for name, grad in gradients(model).items():
        assert torch.allclose(grad, ours[name], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize(("make", "examples"), [(llama, EXAMPLES), (bert, TEXTS)])
def test_gradients_added_up_over_micro_batches_are_those_of_the_whole_batch(make, examples, size):
    found = []
    for parts in ([whole(examples)], [part for _, part in lora.batches(examples, size, pad=PAD, device=CPU)]):
        model = make()
        tuned(model, method="all")
        loss = lora.backward(model, parts, answers=sum(part.answers for part in parts))
        found.append((loss, gradients(model)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-12)
    for name, grad in found[0][1].items():
        assert torch.allclose(grad, found[1][1][name], rtol=1e-9, atol=1e-13)


def test_shares_of_a_batch_add_up_to_it_when_both_divide_by_its_answers():
    model = llama()
    tuned(model, method="all")
    loss = lora.backward(model, [whole()], answers=8)
    expected = gradients(model)
    model.zero_grad()
    shares = [lora.backward(model, [whole(EXAMPLES[part])], answers=8) for part in (slice(0, 1), slice(1, 4))]
    assert sum(shares) == pytest.approx(loss, rel=1e-12)
    for name, grad in gradients(model).items():
        assert torch.allclose(grad, expected[name], rtol=1e-9, atol=1e-13)


def test_batches_hold_every_example_once_longest_first_and_are_padded_to_their_own_longest():
    found = list(lora.batches(EXAMPLES, 2, pad=PAD, device=CPU))
    assert [places for places, _ in found] == [[3, 0], [2, 1]]
    assert [batch.ids_BL.shape[1] for _, batch in found] == [7, 4]


def test_a_logarithm_of_the_vocabulary_is_taken_at_the_answers_alone():
    model = llama()
    assert lora.logits(model, whole()).shape == (4, 3, VOCABULARY)


# Scores


@pytest.mark.parametrize(("make", "examples"), [(llama, EXAMPLES), (bert, TEXTS)])
def test_scores_come_in_the_order_of_the_examples_and_are_those_of_each_alone(make, examples):
    model = make()
    found = lora.evaluate(model, examples, 2, pad=PAD, device=CPU)
    for place, example in enumerate(examples):
        logits_LV = model(input_ids=torch.tensor([example.ids])).logits
        if example.label is None:
            asked_KV, labels_K = logits_LV[0, -example.answer - 1 : -1], torch.tensor(example.ids[-example.answer :])
        else:
            asked_KV, labels_K = logits_LV, torch.tensor([example.label])
        loss = F.cross_entropy(asked_KV, labels_K, reduction="sum")
        assert found.loss_B[place].item() == pytest.approx(loss.item(), rel=1e-10)
        assert found.labels_B[place] == len(labels_K)
        right = (asked_KV.argmax(dim=-1) == labels_K).double().mean().item()
        assert found.accuracy_B[place].item() == pytest.approx(right)


# Training


def adam_by_hand(param: Tensor, grads: list[Tensor], lr: float) -> Tensor:
    """Kingma & Ba 2015, algorithm 1."""
    m, v = torch.zeros_like(param), torch.zeros_like(param)
    for t, grad in enumerate(grads, 1):
        m = 0.9 * m + 0.1 * grad
        v = 0.999 * v + 0.001 * grad**2
        param = param - lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
    return param


def test_two_steps_on_an_adapter_are_adam_s_written_out():
    model = llama()
    tuned(model, rank=2)
    params = lora.trained(model)
    start = {name: parameter.detach().clone() for name, parameter in params.items()}
    optimizer = torch.optim.Adam(params.values(), lr=0.01, fused=True)
    seen = []
    for _ in range(2):
        optimizer.zero_grad()
        lora.backward(model, [whole()], answers=8)
        seen.append(gradients(model))
        optimizer.step()
    for name, parameter in params.items():
        by_hand = adam_by_hand(start[name], [grads[name] for grads in seen], 0.01)
        assert torch.allclose(parameter, by_hand, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("told", [{"method": "all"}, {"method": "last", "blocks": 1}, {"rank": 4}])
@pytest.mark.parametrize(("make", "examples"), [(llama, EXAMPLES), (bert, TEXTS)])
def test_one_batch_is_learned_by_heart(make, examples, told):
    model = make()
    tuned(model, **told)
    optimizer = torch.optim.Adam(lora.trained(model).values(), lr=0.02)
    batch = whole(examples)
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        losses.append(lora.backward(model, [batch], answers=batch.answers))
        optimizer.step()
    assert losses[-1] < losses[0] / 5  # frozen embeddings of so few features do not let it go to 0
    assert lora.evaluate(model, examples, 4, pad=PAD, device=CPU).accuracy_B.tolist() == [1.0] * len(examples)
