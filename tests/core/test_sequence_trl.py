"""The losses against those of TRL (extra ``peers``), whose private method is called with its own tiny model."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from core.sequence.batch import LossResult, TokenBatch, TokenScores
from core.sequence.losses import GRPO, EntropyBonus, ForkingTokens, clip_higher
from core.sequence.preferences import DPO
from core.torchvision_guard import shield

pytestmark = pytest.mark.filterwarnings("ignore")
VOCABULARY, PROMPT, LENGTH, ROWS = 32, 3, 6, 12


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """TRL, a tokenizer, a small random Llama, and what the settings of all its trainers say."""
    shield()
    trl = pytest.importorskip("trl")
    tokenizers, transformers = (pytest.importorskip(x) for x in ("tokenizers", "transformers"))
    words = {f"w{i}": i for i in range(VOCABULARY - 2)} | {"<pad>": VOCABULARY - 2, "<eos>": VOCABULARY - 1}
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", eos_token="<eos>")

    def llama(seed: int) -> Any:
        torch.manual_seed(seed)
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=VOCABULARY, **sizes))

    folder = str(tmp_path_factory.mktemp("trl"))
    # In half precision, which is TRL's default, the losses would differ by 1e-4.
    settings = {"output_dir": folder, "use_cpu": True, "bf16": False, "report_to": "none"}
    return {"trl": trl, "tokenizer": tokenizer, "llama": llama, "settings": settings}


@pytest.fixture(scope="module")
def trainer(tiny: dict[str, Any]) -> Any:
    """TRL's trainer of group-relative policies."""
    trl = tiny["trl"]
    datasets = pytest.importorskip("datasets")
    found = trl.GRPOTrainer(
        model=tiny["llama"](0),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=trl.GRPOConfig(
            **tiny["settings"],
            use_bias_correction_kl=False,
            per_device_train_batch_size=8,
            num_generations=4,
            max_completion_length=LENGTH,
        ),
        train_dataset=datasets.Dataset.from_dict({"prompt": ["w1 w2 w3"] * 8}),
        processing_class=tiny["tokenizer"],
    )
    found.current_gradient_accumulation_steps = 1
    found.model.train()
    return found


def drawn() -> tuple[Tensor, TokenBatch]:
    """Prompts ``(B, P)``, and completions of 1 to LENGTH tokens with advantages and two other policies' scores."""
    g = torch.Generator().manual_seed(0)
    n = torch.randint(1, LENGTH + 1, (ROWS,), generator=g)
    n[0] = LENGTH
    mask = torch.arange(LENGTH) < n.unsqueeze(1)
    tokens = torch.where(mask, torch.randint(0, VOCABULARY - 2, mask.shape, generator=g), VOCABULARY - 2)
    lp = [torch.where(mask, -3.5 + 0.4 * torch.randn(mask.shape, generator=g), 0.0) for _ in range(2)]
    advantage = torch.where(mask, torch.randn(ROWS, 1, generator=g), 0.0)
    batch = TokenBatch(
        tokens, mask, torch.arange(ROWS) % 3, log_prob_old=lp[0], log_prob_ref=lp[1], advantage=advantage
    )
    return torch.randint(0, VOCABULARY - 2, (ROWS, PROMPT), generator=g), batch


def scores_of(model: Any, prompt: Tensor, batch: TokenBatch) -> TokenScores:
    valid = torch.cat([torch.ones_like(prompt, dtype=torch.bool), batch.mask], 1)
    logits = model(input_ids=torch.cat([prompt, batch.tokens], 1), attention_mask=valid.long()).logits
    log_p = logits[:, PROMPT - 1 : -1].log_softmax(-1)
    lp = log_p.gather(2, batch.tokens.unsqueeze(2)).squeeze(2)
    return TokenScores(lp, entropy=-(log_p.exp() * log_p).sum(-1))


def compare(trainer: Any, loss: Any, tolerance: float, **settings: Any) -> LossResult:
    """Set TRL's trainer up and hold both losses and their gradients against each other."""
    default = {
        "loss_type": "dapo",
        "epsilon_low": 0.2,
        "epsilon_high": 0.2,
        "beta": 0.0,
        "top_entropy_quantile": 1.0,
        "importance_sampling_level": "token",
    }
    for name, value in (default | settings).items():
        assert hasattr(trainer, name)
        setattr(trainer, name, value)
    prompt, batch = drawn()
    inputs = {
        "prompt_ids": prompt,
        "prompt_mask": torch.ones_like(prompt),
        "completion_ids": batch.tokens,
        "completion_mask": batch.mask.long(),
        "advantages": batch.need("advantage")[:, 0],
        "old_per_token_logps": batch.log_prob_old,
        "ref_per_token_logps": batch.log_prob_ref,
        "num_items_in_batch": batch.mask.sum(),
    }
    model = trainer.model
    theirs = trainer._compute_loss(model, inputs)
    found: LossResult = loss(scores_of(model, prompt, batch), batch)
    slopes = [torch.autograd.grad(value, list(model.parameters())) for value in (theirs, found.value)]
    difference = float((theirs - found.value).abs())
    slope = max(float((a - b).abs().max()) for a, b in zip(*slopes, strict=True))
    print(f"{loss.name} {settings}: loss {float(found.value):+.4f}, off by {difference:.1e}, gradient by {slope:.1e}")
    assert difference <= tolerance
    assert slope <= 10 * tolerance
    return found


@pytest.mark.parametrize(
    ("loss", "settings"),
    [
        (GRPO(), {}),
        (clip_higher(), {"epsilon_high": 0.28}),
        (GRPO(how="sequence"), {"loss_type": "grpo"}),
        (GRPO(how="constant"), {"loss_type": "dr_grpo"}),
        (GRPO(0.02, 0.04, how="sequence", level="sequence"), {
            "loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon_low": 0.02, "epsilon_high": 0.04,
        }),
        (ForkingTokens(), {"epsilon_high": 0.28, "top_entropy_quantile": 0.2}),
        (ForkingTokens(GRPO(), share=0.5), {"top_entropy_quantile": 0.5}),
        (GRPO(beta=0.05), {"beta": 0.05}),
    ],
)  # fmt: skip
def test_a_loss_and_its_gradient_are_trl_s(trainer: Any, loss: Any, settings: dict[str, Any]) -> None:
    compare(trainer, loss, 2e-7, **settings)


def test_an_entropy_bonus_is_trl_s(trainer: Any) -> None:
    trainer._entropy_bonus_enabled, trainer.entropy_coef = True, 0.1
    try:
        compare(trainer, EntropyBonus(GRPO(), 0.1), 2e-7)
    finally:
        trainer._entropy_bonus_enabled = False


def test_the_settings_compared_are_not_all_the_same_loss(trainer: Any) -> None:
    prompt, batch = drawn()
    with torch.no_grad():
        scores = scores_of(trainer.model, prompt, batch)
    losses = (GRPO(), clip_higher(), GRPO(how="sequence"), GRPO(how="constant"), ForkingTokens(), GRPO(beta=0.05))
    values = [float(loss(scores, batch).value) for loss in losses]
    assert len({round(x, 4) for x in values}) == len(values)
    assert GRPO()(scores, batch).metrics["clipped"] > 0.05


@pytest.mark.parametrize(
    ("loss", "kind"), [(DPO(), "sigmoid"), (DPO(ipo=True, length_normalised=True), "ipo")], ids=["dpo", "ipo"]
)
def test_preference_losses_are_trl_s(tiny: dict[str, Any], loss: DPO, kind: str) -> None:
    trl, settings = tiny["trl"], tiny["settings"]
    datasets = pytest.importorskip("datasets")
    pairs = {"prompt": ["w1 w2"] * 4, "chosen": ["w3 w4"] * 4, "rejected": ["w5"] * 4}
    trainer = trl.DPOTrainer(
        model=tiny["llama"](0),
        ref_model=tiny["llama"](1),
        args=trl.DPOConfig(**settings, loss_type=[kind], beta=loss.beta),
        train_dataset=datasets.Dataset.from_dict(pairs),
        processing_class=tiny["tokenizer"],
    )
    prompt, batch = drawn()
    # The first half of the rows wins over the second.
    batch = batch.with_(group=torch.arange(ROWS) % 6, reward=(torch.arange(ROWS) < 6).float())
    with torch.no_grad():
        batch = batch.with_(log_prob_ref=scores_of(trainer.ref_model, prompt, batch).log_prob)
    valid = torch.cat([torch.ones_like(prompt), batch.mask.long()], 1)
    inputs = {
        "input_ids": torch.cat([prompt, batch.tokens], 1),
        "attention_mask": valid,
        "completion_mask": torch.cat([torch.zeros_like(prompt), batch.mask.long()], 1),
    }
    theirs = trainer._compute_loss(trainer.model, inputs, return_outputs=False)
    found = loss(scores_of(trainer.model, prompt, batch), batch).value
    print(f"{kind}: loss {float(found):+.4f}, off by {float((theirs - found).abs()):.1e}")
    torch.testing.assert_close(found, theirs, rtol=2e-6, atol=2e-7)
