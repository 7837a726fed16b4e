"""Forty-eight prompts of our own about everyday things, for a first impression of a model with no files at hand.

Each category asks for one kind of binding. They are few: for figures to publish take a published set.
"""

from __future__ import annotations

__all__ = ["PROMPTS"]

#: Prompts by category.
PROMPTS: dict[str, tuple[str, ...]] = {
    "color": (
        "a red bicycle and a yellow mailbox",
        "a blue teapot and a green cushion",
        "a purple umbrella and an orange suitcase",
        "a white rabbit and a black kettle",
        "a pink sofa and a brown guitar",
        "a green apple and a red plate",
        "a yellow raincoat and a blue bucket",
        "a black swan and a white boat",
        "an orange scarf and a purple hat",
        "a brown horse and a red barn",
        "a blue door and a pink bench",
        "a green parrot and a yellow cage",
    ),
    "texture": (
        "a wooden chair and a glass vase",
        "a leather bag and a metal lamp",
        "a woolen hat and a plastic bottle",
        "a stone bridge and a wooden boat",
        "a velvet curtain and a paper lantern",
        "a metal bucket and a rubber duck",
        "a glass table and a leather armchair",
        "a knitted blanket and a wicker basket",
        "a marble statue and a brick wall",
        "a paper boat and a ceramic bowl",
        "a rusty car and a fluffy dog",
        "a golden ring and a cotton towel",
    ),
    "parts": (
        "a cat with a tie and a dog with a crown",
        "a bear with a scarf and a rabbit with glasses",
        "a horse with a hat and a cow with a bell",
        "a penguin with an umbrella and a fox with a backpack",
        "a boy with a kite and a girl with a balloon",
        "a lion with a crown and a monkey with a guitar",
        "a robot with a flower and an owl with a book",
        "a pig with boots and a goat with a necklace",
        "a duck with a helmet and a frog with a cape",
        "a chef with a cake and a sailor with a parrot",
        "a mouse with a drum and a hen with a basket",
        "an elephant with a flag and a zebra with sunglasses",
    ),
    "three": (
        "a cat, a teapot and a lamp",
        "a dog, a ball and a chair",
        "a bird, an apple and a candle",
        "a car, a tree and a mailbox",
        "a red cup, a blue book and a green pear",
        "a clock, a vase and a violin",
        "a yellow bus, a white horse and a red balloon",
        "a fox, a mushroom and a lantern",
        "a black hat, a brown shoe and a pink glove",
        "a boat, a lighthouse and a seagull",
        "a blue chair, a yellow table and a purple rug",
        "a frog, a crown and a drum",
    ),
}
