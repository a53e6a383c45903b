"""The learner: model, readouts, one step of each kind of stage, and the optimisers.

Hidden matrices learn by Muon, everything else (embeddings, norms, biases, readouts) by AdamW. Matrix products run in
bfloat16, weights and sums stay in float32.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from models.tiny.fast_attention import register
from models.tiny.initialise import dialect
from models.tiny.packing import IGNORE, Pack, pack
from models.tiny.patches import PatchLabels, PatchReadout, WordAlignment
from models.tiny.questions import ask
from models.tiny.scenes import Scene

PARTS = ("tower", "projector", "embeddings", "decoder", "readout")
MUON_RATE, ADAM_RATE = 0.03, 2e-3
WARM_UP = 50  # steps
CLIP = 1.0


class Learner:
    """A model of one family, its processor, and what only training needs: readouts, alignment, random numbers.

    `family` is a module such as `build_llava`. `prefix` is the token ids before a question; `image_span` (start, stop)
    is where the picture's tokens are among them.
    """

    def __init__(self, family, seed: int) -> None:
        torch.manual_seed(seed)
        self.processor = family.build_processor()
        self.vocabulary = self.processor.tokenizer.get_vocab()
        self.model = family.build_model(len(self.vocabulary))
        self.model.set_attn_implementation(register())
        self.family, self.rng = family, np.random.default_rng(seed)
        self.prefix, self.image_span = family.prefix(self.vocabulary)
        width = self.model.config.text_config.hidden_size
        self.readout = PatchReadout(self.model.config.vision_config.hidden_size, family.PATCHES)
        self.projected_readout = PatchReadout(width, family.PATCHES)
        self.alignment = WordAlignment(self.vocabulary, self.model.config.text_config.initializer_range, dialect(width))

    def part(self, name: str) -> nn.ModuleList:
        """The modules of one of PARTS."""
        inner = self.model.model
        return nn.ModuleList(
            {
                "tower": [inner.vision_tower],
                "projector": [inner.multi_modal_projector],
                "embeddings": [inner.language_model.embed_tokens],
                "decoder": [inner.language_model.layers, inner.language_model.norm],
                "readout": [self.readout, self.projected_readout],
            }[name]
        )

    def features(self, scenes: list[Scene]) -> torch.Tensor:
        """Tower features [picture, patch, width]."""
        pixels = torch.from_numpy(np.stack([scene.picture for scene in scenes])).permute(0, 3, 1, 2)
        return self.family.features(self.model, pixels.float().div(127.5).sub(1).contiguous())

    def patch_loss(self, scenes: list[Scene]) -> tuple[torch.Tensor, dict[str, float]]:
        with torch.autocast("cpu", torch.bfloat16):
            features = self.features(scenes)
        return self.readout.loss(features.float(), PatchLabels(scenes))

    def align_loss(self, scenes: list[Scene]) -> tuple[torch.Tensor, dict[str, float]]:
        """Projector and word embeddings only; the tower is read without gradient."""
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            features = self.features(scenes)
        projected = self.model.model.multi_modal_projector(features.float())
        labels = PatchLabels(scenes)
        loss = self.alignment.loss(projected, labels, self.model.get_input_embeddings().weight)
        readable, measured = self.projected_readout.loss(projected, labels)
        return loss + readable, measured

    def question_loss(
        self, scenes: list[Scene], mix: dict[str, float], per_scene: int, patch_weight: float
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Mean cross entropy of the answers' words, plus the patch loss of the same pictures."""
        asked = [ask(scene.shapes, mix, per_scene, self.rng) for scene in scenes]
        packed = pack(
            self.prefix,
            [[(question, answer) for _, question, answer in one] for one in asked],
            self.vocabulary,
            self.processor.tokenizer.pad_token_id,
        )
        with torch.autocast("cpu", torch.bfloat16):
            features = self.features(scenes)
            hidden = self.decode(features, packed)
        learnt = packed.targets != IGNORE
        logits = self.model.lm_head(hidden[learnt])
        loss = F.cross_entropy(logits, packed.targets[learnt])
        patch, _ = self.readout.loss(features.float(), PatchLabels(scenes))
        kinds = [[kind for kind, _, _ in one] for one in asked]
        return loss + patch_weight * patch, {"loss": loss.item(), **exact_by_kind(logits, packed, kinds)}

    def decode(self, features: torch.Tensor, packed: Pack) -> torch.Tensor:
        """Last hidden states [picture, token, width] (float32)."""
        inner = self.model.model
        embedded = inner.language_model.embed_tokens(packed.ids)
        start, stop = self.image_span
        projected = inner.multi_modal_projector(features).float()
        embedded = torch.cat([embedded[:, :start], projected, embedded[:, stop:]], 1)
        return inner.language_model(
            inputs_embeds=embedded, attention_mask=packed.mask, position_ids=packed.positions, use_cache=False
        ).last_hidden_state.float()


def exact_by_kind(logits: torch.Tensor, packed: Pack, kinds: list[list[str]]) -> dict[str, float]:
    """Share of wholly right answers per kind, each word given the right ones before it."""
    with torch.no_grad():
        learnt = packed.targets != IGNORE
        picture, _ = learnt.nonzero(as_tuple=True)
        segment = packed.segment[learnt]
        wrong = logits.argmax(-1) != packed.targets[learnt]
        count = int(packed.segment.max()) + 1
        mistakes = torch.zeros(len(kinds) * count).index_add_(0, picture * count + segment, wrong.float())
    found = defaultdict(list)
    for row, names in enumerate(kinds):
        for number, kind in enumerate(names, 1):
            found[kind].append(mistakes[row * count + number].item() == 0)
    return {kind: float(np.mean(hits)) for kind, hits in found.items()}


class Optimisers:
    """Muon for hidden matrices, AdamW for the rest; `rates` maps the parts that learn to a factor on both rates."""

    def __init__(self, learner: Learner, rates: dict[str, float]) -> None:
        matrices, others = [], []
        for name, factor in rates.items():
            part = learner.part(name)
            hidden = {id(module.weight) for module in part.modules() if isinstance(module, nn.Linear)}
            for parameter in part.parameters():
                by_muon = id(parameter) in hidden and name in ("tower", "decoder")
                (matrices if by_muon else others).append({"params": [parameter], "factor": factor})
        self.parameters = [group["params"][0] for group in matrices + others]
        self.optimisers = [torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.98), weight_decay=0.0)]
        if matrices:
            self.optimisers.append(torch.optim.Muon(matrices, lr=MUON_RATE, weight_decay=0.01))

    def step(self, loss: torch.Tensor, rate: float) -> None:
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, CLIP)
        for optimiser in self.optimisers:
            base = MUON_RATE if isinstance(optimiser, torch.optim.Muon) else ADAM_RATE
            for group in optimiser.param_groups:
                group["lr"] = base * rate * group["factor"]
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
