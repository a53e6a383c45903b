"""Questions about a scene: kinds, wording, answers and vocabulary.

Each kind is a function (shapes, rng) -> (question, answer), or None where the scene does not allow the question or the
answer would be ambiguous (a shape near a middle line has no side). Words are lower case with separate punctuation, as
the tokenizer normalises them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from data.shapes import COLOURS, SHAPES, Shape
from data.twoshapes import OPPOSITE, PHRASE

Question = tuple[str, str] | None  # (question, answer)
Shapes = tuple[Shape, ...]

CLEAR = 0.8  # a relation is defined where the minor offset is at most this share of the major one
MIDDLE = 0.04  # distance from a middle line below which a shape has no side
CORNER, NEAR_CORNER = 0.4, 0.5  # a centre within CORNER of both edges is in the corner; undefined up to NEAR_CORNER
CORNERS = ("top left", "top right", "bottom left", "bottom right")
HALVES = ("top", "bottom", "left", "right")

# Further words for prompts of users: in the vocabulary, but not trained.
SPARE_WORDS = """answer answers at background big biggest black both bottom briefly by can center centre color corners
describe different do does each edge empty following four from grey have here how i it its large larger letter many
middle next no none object objects one only or option options other out over please position question same say see side
small smaller so that them these they thing things this those three two under using user we white with word words
would you zero a b c d ( ) , : ; ! ' -"""


def relation(first: Shape, second: Shape) -> str | None:
    """Relation of `first` to `second` along the axis of the larger offset; None where both offsets are similar."""
    dx, dy = first.x - second.x, first.y - second.y
    if min(abs(dx), abs(dy)) > CLEAR * max(abs(dx), abs(dy)):
        return None
    if abs(dx) > abs(dy):
        return "left" if dx < 0 else "right"
    return "above" if dy < 0 else "below"


def place(shape: Shape) -> str | None:
    """Quarter of the image that contains the centre; None near a middle line."""
    if min(abs(shape.x - 0.5), abs(shape.y - 0.5)) < MIDDLE:
        return None
    return f"{'top' if shape.y < 0.5 else 'bottom'} {'left' if shape.x < 0.5 else 'right'}"


def in_corner(shape: Shape, corner: str) -> bool | None:
    """True if the centre is in the corner, False if it is clearly outside, else None."""
    reach = max(
        shape.y if "top" in corner else 1 - shape.y,
        shape.x if "left" in corner else 1 - shape.x,
    )
    return True if reach <= CORNER else None if reach <= NEAR_CORNER else False


def in_half(shape: Shape, half: str) -> bool | None:
    """True if the centre is in the half, False if it is in the other; None near the middle line."""
    reach = {"top": shape.y, "bottom": 1 - shape.y, "left": shape.x, "right": 1 - shape.x}[half]
    return None if abs(reach - 0.5) < MIDDLE else reach < 0.5


def yes_no(truth: bool) -> str:
    """Answer to a yes/no question."""
    return "yes" if truth else "no"


def two(shapes: Shapes, rng: np.random.Generator) -> tuple[Shape, Shape] | None:
    """Two shapes of the scene in random order; None for fewer."""
    if len(shapes) < 2:
        return None
    first, second = rng.permutation(len(shapes))[:2]
    return shapes[first], shapes[second]


def related(shapes: Shapes, rng: np.random.Generator) -> tuple[Shape, Shape, str] | None:
    """Two shapes in random order and their relation; None where it is undefined."""
    pair = two(shapes, rng)
    side = pair and relation(*pair)
    return (*pair, side) if side else None


def balanced(rng: np.random.Generator, options: list[tuple[str, bool]]) -> tuple[str, bool] | None:
    """A true or a false option with equal probability; None where no option has the drawn truth value."""
    truth = rng.random() < 0.5
    wanted = [option for option in options if option[1] == truth]
    return wanted[rng.integers(len(wanted))] if wanted else None


def rel_question(shapes: Shapes, rng: np.random.Generator) -> Question:
    """ShapeWorld's caption up to the relation."""
    if not (pair := related(shapes, rng)):
        return None
    first, second, side = pair
    return (
        f"there are two shapes a {first.name} and a {second.name} . what is the spatial relationship "
        "from the first shape to the second shape ? the spatial relation is",
        side,
    )


def relwhere_question(shapes: Shapes, rng: np.random.Generator) -> Question:
    if not (pair := related(shapes, rng)):
        return None
    first, second, side = pair
    return f"where is the {first.name} in relation to the {second.name} ?", side


def relyn_question(shapes: Shapes, rng: np.random.Generator) -> Question:
    if not (pair := related(shapes, rng)):
        return None
    first, second, side = pair
    truth = rng.random() < 0.5
    return f"is the {first.name} {PHRASE[side if truth else OPPOSITE[side]]} the {second.name} ?", yes_no(truth)


def whatrel_question(shapes: Shapes, rng: np.random.Generator) -> Question:
    pair = related(shapes, rng)
    if not pair or len(shapes) != 2:
        return None
    first, second, side = pair
    if rng.random() < 0.75:
        return f"what is {PHRASE[side]} the {second.name} ?", f"a {first.name}"
    return f"what is {PHRASE[OPPOSITE[side]]} the {second.name} ?", "nothing"


def first_question(shapes: Shapes, rng: np.random.Generator) -> Question:
    pair = two(shapes, rng)
    which = int(rng.integers(2))
    if not pair or not (answer := place(pair[which])):
        return None
    order = ("first", "second")[which]
    return f"there are two shapes a {pair[0].name} and a {pair[1].name} . where is the {order} shape ?", answer


def where_question(shapes: Shapes, rng: np.random.Generator) -> Question:
    if not shapes:
        return None
    shape = shapes[rng.integers(len(shapes))]
    return (f"where is the {shape.name} ?", answer) if (answer := place(shape)) else None


def colour_question(shapes: Shapes, rng: np.random.Generator) -> Question:
    """Colour of a shape whose kind occurs once."""
    kinds = [shape.shape for shape in shapes]
    single = [shape for shape in shapes if kinds.count(shape.shape) == 1]
    if not single:
        return None
    shape = single[rng.integers(len(single))]
    return f"what colour is the {shape.shape} ?", shape.colour


def shape_question(shapes: Shapes, rng: np.random.Generator) -> Question:
    """Kind of a shape whose colour occurs once."""
    colours = [shape.colour for shape in shapes]
    single = [shape for shape in shapes if colours.count(shape.colour) == 1]
    if not single:
        return None
    shape = single[rng.integers(len(single))]
    return f"what shape is the {shape.colour} one ?", shape.shape


def exist_question(shapes: Shapes, rng: np.random.Generator) -> Question:
    """Existence of a shape; half of the absent ones share the colour or the kind of a present one."""
    names = {(shape.colour, shape.shape) for shape in shapes}
    if shapes and rng.random() < 0.5:
        colour, shape = sorted(names)[rng.integers(len(names))]
        return f"is there a {colour} {shape} ?", "yes"
    colour, shape = str(rng.choice(list(COLOURS))), str(rng.choice(SHAPES))
    if shapes and rng.random() < 0.5:
        if rng.random() < 0.5:
            colour = shapes[rng.integers(len(shapes))].colour
        else:
            shape = shapes[rng.integers(len(shapes))].shape
    return None if (colour, shape) in names else (f"is there a {colour} {shape} ?", "no")


def anything_question(
    shapes: Shapes, rng: np.random.Generator, places: tuple[str, ...], within: Callable, kind: str
) -> Question:
    """Presence of any shape in a place; places are excluded where it is undefined."""
    options = []
    for place in places:
        inside = [within(shape, place) for shape in shapes]
        if any(inside) or None not in inside:
            options.append((place, any(inside)))
    chosen = balanced(rng, options)
    return (f"is there anything in the {chosen[0]} {kind} ?", yes_no(chosen[1])) if chosen else None


def corner_question(shapes: Shapes, rng: np.random.Generator) -> Question:
    return anything_question(shapes, rng, CORNERS, in_corner, "corner")


def side_question(shapes: Shapes, rng: np.random.Generator) -> Question:
    return anything_question(shapes, rng, HALVES, in_half, "half")


def cornerwhat_question(shapes: Shapes, rng: np.random.Generator) -> Question:
    """Content of a corner with exactly one shape (mostly) or with none."""
    inside = {corner: [in_corner(shape, corner) for shape in shapes] for corner in CORNERS}
    full = [corner for corner in CORNERS if inside[corner].count(True) == 1 and None not in inside[corner]]
    empty = [corner for corner in CORNERS if inside[corner].count(False) == len(shapes)]
    corners = full if full and rng.random() < 0.75 else empty
    if not corners:
        return None
    corner = corners[rng.integers(len(corners))]
    names = [shape.name for shape, is_inside in zip(shapes, inside[corner], strict=True) if is_inside]
    return f"what is in the {corner} corner ?", f"a {names[0]}" if names else "nothing"


def describe_question(shapes: Shapes, rng: np.random.Generator) -> Question:
    """Description of up to two shapes, the left one first."""
    if len(shapes) > 2 or (len(shapes) == 2 and abs(shapes[0].x - shapes[1].x) < MIDDLE):
        return None
    names = [f"a {shape.name}" for shape in sorted(shapes, key=lambda shape: shape.x)]
    return "describe the image .", " and ".join(names) + " ." if names else "nothing ."


def amb_question(shapes: Shapes, rng: np.random.Generator) -> Question:
    """Deliberately ambiguous where the colours differ: the answer is a random one of them."""
    if not shapes:
        return None
    return "what colour is the shape ?", shapes[rng.integers(len(shapes))].colour


KINDS: dict[str, Callable[[Shapes, np.random.Generator], Question]] = {
    "rel": rel_question,
    "relwhere": relwhere_question,
    "relyn": relyn_question,
    "whatrel": whatrel_question,
    "first": first_question,
    "where": where_question,
    "colour": colour_question,
    "shape": shape_question,
    "exist": exist_question,
    "corner": corner_question,
    "side": side_question,
    "cornerwhat": cornerwhat_question,
    "describe": describe_question,
    "amb": amb_question,
}


def sample_questions(
    shapes: Shapes, mix: dict[str, float], count: int, rng: np.random.Generator
) -> list[tuple[str, str, str]]:
    """Sample `count` questions about a scene as (kind, question, answer), with kinds in proportion to `mix`."""
    names, weights = list(mix), np.array(list(mix.values()))
    sampled = []
    while len(sampled) < count:
        kind = names[rng.choice(len(names), p=weights / weights.sum())]
        if question := KINDS[kind](shapes, rng):
            sampled.append((kind, *question))
    return sampled


def is_correct(kind: str, shapes: Shapes, answer: str, generated: str) -> bool:
    """Exact match of the whole answer; for the ambiguous question, any colour in the scene."""
    if kind == "amb":
        return generated in {shape.colour for shape in shapes}
    return generated == answer


def words() -> list[str]:
    """Sorted vocabulary: the words of all questions and answers, and SPARE_WORDS."""
    wordings = """assistant user there are two shapes a and . what is the spatial relationship from first shape to
    second ? relation where in is to left right above below of yes no nothing colour one anything corner half top
    bottom describe image picture which true false"""
    return sorted({*wordings.split(), *SPARE_WORDS.split(), *COLOURS, *SHAPES})
