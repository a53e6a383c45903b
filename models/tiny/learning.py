"""Training of an embedded checkpoint: patch labels, linear readouts, one loss per kind of stage, and the optimisers.

Patch labels supervise the vision encoder before any question: an image gives hundreds of labels, an answer a few bits.
Muon trains hidden matrices, AdamW all other parameters (embeddings, norms, biases, readouts). Matrix products run in
bfloat16, weights and sums stay in float32.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from data.shapes import COLOURS, SHAPES
from models.tiny.build_llava import feed_forward_states, load_teacher, teacher_prefix, teacher_tokens
from models.tiny.initialise import image_rotation
from models.tiny.packing import IGNORE, Pack, Prefix, pack, register_attention
from models.tiny.questions import sample_questions
from models.tiny.scenes import Scene

COLOUR_NAMES, SHAPE_NAMES = (None, *COLOURS), (None, *SHAPES)  # 0 is the background
MIN_COVER = 0.08  # covered share above which a patch belongs to the shape
BACKGROUND_WEIGHT = 0.1
MUON_RATE, ADAM_RATE = 0.03, 2e-3
BY_MUON = ("tower", "first_layers", "decoder")
QUESTIONS_PER_SCENE = 8
WARM_UP = 50  # steps
CLIP = 1.0
WORDS_WEIGHT = 0.3

Loss = tuple[torch.Tensor, dict[str, float]]


class PatchLabels:
    """Colour and shape of each patch (int64 [image, patch]; 0 background, -100 a sliver without label) and the centre
    of its shape (float32 [image, patch, xy] in -1..1)."""

    def __init__(self, scenes: list[Scene]) -> None:
        patches = scenes[0].cover.shape[1] * scenes[0].cover.shape[2]
        self.colour = np.zeros((len(scenes), patches), np.int64)
        self.shape = np.zeros((len(scenes), patches), np.int64)
        self.centre = np.zeros((len(scenes), patches, 2), np.float32)
        for index, scene in enumerate(scenes):
            if scene.shapes:
                self.label(index, scene)
        self.colour, self.shape, self.centre = map(torch.from_numpy, (self.colour, self.shape, self.centre))
        self.foreground = self.colour > 0

    def label(self, index: int, scene: Scene) -> None:
        """Set the labels of image `index`."""
        cover = scene.cover.reshape(len(scene.shapes), -1)  # [shape, patch]
        owner, covered = cover.argmax(0), cover.max(0)
        labelled = covered > MIN_COVER
        for number, best in enumerate(cover.argmax(1)):  # a shape too small for any patch gets its best one
            labelled[best], owner[best] = True, number
        colours = np.array([COLOUR_NAMES.index(shape.colour) for shape in scene.shapes])
        shapes = np.array([SHAPE_NAMES.index(shape.shape) for shape in scene.shapes])
        sliver = (covered > 0) & ~labelled
        self.colour[index] = np.where(sliver, IGNORE, np.where(labelled, colours[owner], 0))
        self.shape[index] = np.where(sliver, IGNORE, np.where(labelled, shapes[owner], 0))
        self.centre[index] = np.array([(shape.x, shape.y) for shape in scene.shapes])[owner] * 2 - 1


def class_weights(classes: int) -> torch.Tensor:
    """Class weights of a cross entropy; class 0 is the background, with weight BACKGROUND_WEIGHT."""
    weight = torch.ones(classes)
    weight[0] = BACKGROUND_WEIGHT
    return weight


def patch_positions(side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and column [patch] of the patches of an image in raster order."""
    patch = torch.arange(side**2)
    return patch // side, patch % side


class PatchReadout(nn.Module):
    """Linear readout of colour, shape, centre, row and column from normalised patch features; used in training only."""

    def __init__(self, width: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.sizes = [len(COLOUR_NAMES), len(SHAPE_NAMES), 2, side, side]
        self.linear = nn.Linear(width, sum(self.sizes))

    def forward(self, features: torch.Tensor) -> list[torch.Tensor]:
        """[image, patch, width] -> colour, shape, centre, row, column."""
        return self.linear(F.layer_norm(features, features.shape[-1:])).split(self.sizes, -1)

    def loss(self, features: torch.Tensor, labels: PatchLabels) -> tuple[torch.Tensor, dict[str, float]]:
        """Readout loss of features [image, patch, width], and the accuracies on patches with a shape."""
        colour, shape, centre, row, column = self(features)
        rows, columns = (index.repeat(len(features)) for index in patch_positions(self.side))
        foreground = labels.foreground
        losses = {
            "colour": F.cross_entropy(colour.flatten(0, 1), labels.colour.flatten(), class_weights(self.sizes[0])),
            "shape": 1.5 * F.cross_entropy(shape.flatten(0, 1), labels.shape.flatten(), class_weights(self.sizes[1])),
            "centre": (centre - labels.centre)[foreground].abs().mean(),
            "row": 0.3 * F.cross_entropy(row.flatten(0, 1), rows),
            "column": 0.3 * F.cross_entropy(column.flatten(0, 1), columns),
        }
        with torch.no_grad():
            measured = {
                "colour": (colour.argmax(-1) == labels.colour)[foreground].float().mean().item(),
                "shape": (shape.argmax(-1) == labels.shape)[foreground].float().mean().item(),
                "centre": losses["centre"].item(),
            }
        return sum(losses.values()), measured


class WordAlignment(nn.Module):
    """Alignment of image tokens with word embeddings, trained before the decoder.

    For each image token the embedding of the correct word must have the largest dot product in its group (colour,
    shape, side, height, anything or nothing). The correct word of the background is "nothing" in every group, so that a
    question about the left half retrieves shapes and not background.
    """

    def __init__(self, vocabulary: dict[str, int], spread: float, rotation: torch.Tensor) -> None:
        super().__init__()
        self.spread = spread
        self.register_buffer("rotation", rotation)
        ids = lambda *names: torch.tensor([vocabulary[name] for name in names])  # noqa: E731
        self.groups = {
            "colour": ids("nothing", *COLOUR_NAMES[1:]),
            "shape": ids("nothing", *SHAPE_NAMES[1:]),
            "side": ids("nothing", "left", "right"),
            "height": ids("nothing", "top", "bottom"),
            "thing": ids("nothing", "anything"),
        }

    def loss(self, projected: torch.Tensor, labels: PatchLabels, embedding: torch.Tensor) -> torch.Tensor:
        """Alignment loss of image tokens `projected` [image, patch, width]; `embedding` [word, width]."""
        rms = projected.square().mean(-1, keepdim=True).sqrt()
        words = (projected / rms).flatten(0, 1) @ self.rotation  # to the embedding space of words
        halves = torch.where(labels.foreground[..., None], 1 + (labels.centre > 0).long(), 0)  # of the centre
        halves = torch.where((labels.colour == IGNORE)[..., None], IGNORE, halves)
        targets = {
            "colour": labels.colour.flatten(),
            "shape": labels.shape.flatten(),
            "side": halves[..., 0].flatten(),
            "height": halves[..., 1].flatten(),
            "thing": torch.where(labels.colour == IGNORE, IGNORE, (labels.colour > 0).long()).flatten(),
        }
        total = 3 * (rms - 2 * self.spread).square().mean()
        for name, target in targets.items():
            group = self.groups[name]
            total = total + F.cross_entropy(words @ embedding[group].T, target, class_weights(len(group)))
        return total


class Learner:
    """Model of one family, its processor, and the readouts, alignment and random generator of its training.

    `family` is a module such as `build_llava`.
    """

    def __init__(self, family, seed: int) -> None:
        torch.manual_seed(seed)
        self.processor = family.build_processor()
        self.vocabulary = self.processor.tokenizer.get_vocab()
        self.model = family.build_model(self.vocabulary)
        self.model.set_attn_implementation(register_attention())
        self.family, self.rng = family, np.random.default_rng(seed)
        ids, image = family.prefix(self.vocabulary)
        self.prefix = Prefix(ids, image, family.prefix_positions(ids), family.AFTER_QUESTION, family.END)
        width = self.model.config.get_text_config().hidden_size
        self.token_readout = PatchReadout(width, family.PATCHES)
        self.prepare(width)

    def prepare(self, width: int) -> None:
        """Create the modules of this kind of learner; `width` is the decoder's."""
        self.readout = PatchReadout(self.model.config.vision_config.hidden_size, self.family.PATCHES)
        spread = self.model.config.text_config.initializer_range
        self.alignment = WordAlignment(self.vocabulary, spread, image_rotation(width))

    def readouts(self) -> list[nn.Module]:
        return [self.readout, self.token_readout]

    def part(self, name: str) -> nn.ModuleList:
        """Modules of an entry of `family.parts`, or of "readout"."""
        return nn.ModuleList(self.readouts() if name == "readout" else self.family.parts(self.model)[name])

    def pixels(self, scenes: list[Scene]) -> torch.Tensor:
        """Pixels [image, rgb, row, column] in -1..1."""
        pixels = torch.from_numpy(np.stack([scene.image for scene in scenes])).permute(0, 3, 1, 2)
        return pixels.float().div(127.5).sub(1).contiguous()

    def tokens(self, pixels: torch.Tensor) -> torch.Tensor:
        """Decoder inputs of images: [image, cell, width]."""
        return self.family.project(self.model, self.family.features(self.model, pixels))

    def patches_loss(self, scenes: list[Scene]) -> Loss:
        """Readout loss of the vision encoder's features."""
        with torch.autocast("cpu", torch.bfloat16):
            features = self.family.features(self.model, self.pixels(scenes))
        return self.readout.loss(features.float(), PatchLabels(scenes))

    def words_loss(self, scenes: list[Scene]) -> Loss:
        """Alignment and readout loss of the projector's outputs, without gradient to the vision encoder."""
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            features = self.family.features(self.model, self.pixels(scenes))
        projected = self.family.project(self.model, features.float())
        labels = PatchLabels(scenes)
        loss = self.alignment.loss(projected, labels, self.model.get_input_embeddings().weight)
        readout_loss, measured = self.token_readout.loss(projected, labels)
        return loss + readout_loss, measured

    def questions(self, scenes: list[Scene], mix: dict[str, float], count: int, prefix: Prefix, vocabulary) -> tuple:
        """Sample `count` questions per scene: (packed sequences, kinds [scene][question])."""
        sampled = [sample_questions(scene.shapes, mix, count, self.rng) for scene in scenes]
        pairs = [[(question, answer) for _, question, answer in questions] for questions in sampled]
        packed = pack(prefix, pairs, vocabulary, self.processor.tokenizer.pad_token_id)
        return packed, [[kind for kind, _, _ in questions] for questions in sampled]

    def questions_loss(self, scenes: list[Scene], mix: dict[str, float], patch_weight: float) -> Loss:
        """Mean cross entropy of the answer tokens, plus the readout loss of the same images."""
        packed, kinds = self.questions(scenes, mix, QUESTIONS_PER_SCENE, self.prefix, self.vocabulary)
        with torch.autocast("cpu", torch.bfloat16):
            hidden, readout_loss = self.read(scenes, packed)
        answered = packed.targets != IGNORE
        logits = self.model.lm_head(hidden[answered])
        loss = F.cross_entropy(logits, packed.targets[answered])
        return loss + patch_weight * readout_loss, {"loss": loss.item(), **accuracy_by_kind(logits, packed, kinds)}

    def read(self, scenes: list[Scene], packed: Pack) -> tuple[torch.Tensor, torch.Tensor]:
        """Last hidden states [image, token, width] (float32), and the readout loss."""
        features = self.family.features(self.model, self.pixels(scenes))
        readout_loss, _ = self.readout.loss(features.float(), PatchLabels(scenes))
        return self.decode(self.embed(self.family.project(self.model, features), packed), packed), readout_loss

    def embed(self, tokens: torch.Tensor, packed: Pack) -> torch.Tensor:
        """Decoder inputs [image, token, width]: word embeddings, with `tokens` at the positions of the image tokens."""
        embedded = self.model.get_input_embeddings()(packed.ids)
        return embedded.index_copy(1, torch.tensor(self.prefix.image), tokens.float())

    def decode(self, embedded: torch.Tensor, packed: Pack) -> torch.Tensor:
        """Last hidden states [image, token, width] (float32)."""
        return self.model.model.language_model(
            inputs_embeds=embedded, attention_mask=packed.mask, position_ids=packed.position_ids, use_cache=False
        ).last_hidden_state.float()


class Student(Learner):
    """Learner distilled from the embedded LLaVA, for families without a projector.

    The first decoder layers are trained to output the image tokens of the teacher's projector; the later layers were
    initialised from the teacher's decoder.
    """

    def prepare(self, width: int) -> None:
        self.teacher = load_teacher()
        self.teacher_prefix = teacher_prefix()

    def readouts(self) -> list[nn.Module]:
        return [self.token_readout]

    def tokens(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.family.features(self.model, pixels)

    def see_loss(self, scenes: list[Scene], mix: dict[str, float]) -> Loss:
        """Error after the first layers: of image tokens relative to the teacher's ("missed") and of words relative to
        their embeddings ("garbled"), plus the readout loss."""
        pixels, labels = self.pixels(scenes), PatchLabels(scenes)
        packed, _ = self.questions(scenes, mix, 1, self.prefix, self.vocabulary)
        with torch.autocast("cpu", torch.bfloat16):
            embedded = self.embed(self.tokens(pixels), packed)
            states = self.first_layers(embedded, packed).float()
        tokens, target = states[:, self.prefix.image], teacher_tokens(self.teacher, pixels)
        weight = torch.where(labels.colour == 0, BACKGROUND_WEIGHT, 1.0)  # most patches are background
        missed = (tokens - target).square().mean(-1) / target.square().mean()
        missed = (weight * missed).sum() / weight.sum()
        word, inputs = packed.segment > 0, embedded.detach()
        garbled = (states - inputs)[word].square().mean() / inputs[word].square().mean()
        readout_loss, measured = self.token_readout.loss(tokens, labels)
        measured = {"missed": missed.item(), "garbled": garbled.item(), **measured}
        return missed + WORDS_WEIGHT * garbled + readout_loss, measured

    def hear_loss(self, scenes: list[Scene], mix: dict[str, float]) -> Loss:
        """Error of the feed-forward blocks after the first layers relative to the teacher's ("misheard"), each with the
        teacher's states as input; for a family whose blocks differ in architecture and cannot be copied."""
        packed, _ = self.questions(scenes, mix, QUESTIONS_PER_SCENE, *self.teacher_prefix)
        before, after = feed_forward_states(self.teacher, teacher_tokens(self.teacher, self.pixels(scenes)), packed)
        loss, layers = 0.0, self.model.model.language_model.layers[self.family.FIRST_LAYERS :]
        with torch.autocast("cpu", torch.bfloat16):
            for layer, states, target in zip(layers, before, after, strict=True):
                output = layer.mlp(layer.post_attention_layernorm(states)).float()
                for part in (packed.segment > 0, packed.segment == 0):  # words; prefix with the image
                    loss = loss + (output - target)[part].square().mean() / target[part].square().mean()
        return loss, {"misheard": loss.item() / 2 / len(before)}

    def first_layers(self, embedded: torch.Tensor, packed: Pack) -> torch.Tensor:
        """Hidden states [image, token, width] after the layers that precede the teacher's."""
        decoder = self.model.model.language_model
        rotation = decoder.rotary_emb(embedded, packed.position_ids)
        for layer in decoder.layers[: self.family.FIRST_LAYERS]:
            embedded = layer(embedded, attention_mask=packed.mask, position_embeddings=rotation)
        return embedded

    def read(self, scenes: list[Scene], packed: Pack) -> tuple[torch.Tensor, torch.Tensor]:
        embedded = self.embed(self.tokens(self.pixels(scenes)), packed)
        hidden = []  # image tokens after the first layers
        hook = self.model.model.language_model.layers[self.family.FIRST_LAYERS].register_forward_pre_hook(
            lambda _, states: hidden.append(states[0][:, self.prefix.image].float())
        )
        decoded = self.decode(embedded, packed)
        hook.remove()
        readout_loss, _ = self.token_readout.loss(hidden[0], PatchLabels(scenes))
        return decoded, readout_loss


def accuracy_by_kind(logits: torch.Tensor, packed: Pack, kinds: list[list[str]]) -> dict[str, float]:
    """Share of exactly correct answers per kind, under teacher forcing."""
    with torch.no_grad():
        answered = packed.targets != IGNORE
        image, _ = answered.nonzero(as_tuple=True)
        segment = packed.segment[answered]
        wrong = logits.argmax(-1) != packed.targets[answered]
        count = int(packed.segment.max()) + 1
        mistakes = torch.zeros(len(kinds) * count).index_add_(0, image * count + segment, wrong.float())
    correct = defaultdict(list)
    for row, names in enumerate(kinds):
        for number, kind in enumerate(names, 1):
            correct[kind].append(mistakes[row * count + number].item() == 0)
    return {kind: float(np.mean(hits)) for kind, hits in correct.items()}


class Optimisers:
    """Muon for hidden matrices, AdamW for the rest; `rates` maps each trained part to a factor on both rates."""

    def __init__(self, learner: Learner, rates: dict[str, float]) -> None:
        matrices, others = [], []
        for name, factor in rates.items():
            part = learner.part(name)
            hidden = {id(module.weight) for module in part.modules() if isinstance(module, nn.Linear)}
            for parameter in part.parameters():
                by_muon = id(parameter) in hidden and name in BY_MUON
                (matrices if by_muon else others).append({"params": [parameter], "factor": factor})
        self.parameters = [group["params"][0] for group in matrices + others]
        self.optimisers = [torch.optim.AdamW(others, lr=ADAM_RATE, betas=(0.9, 0.98), weight_decay=0.0)]
        if matrices:
            self.optimisers.append(torch.optim.Muon(matrices, lr=MUON_RATE, weight_decay=0.01))

    def step(self, loss: torch.Tensor, rate: float) -> None:
        """One optimisation step of a scalar loss; `rate` is a factor on the learning rates."""
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, CLIP)
        for optimiser in self.optimisers:
            base = MUON_RATE if isinstance(optimiser, torch.optim.Muon) else ADAM_RATE
            for group in optimiser.param_groups:
                group["lr"] = base * rate * group["factor"]
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
