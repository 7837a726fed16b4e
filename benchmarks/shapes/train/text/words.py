"""The words of the wider language: those of the closed grammar, and everyday ones around them."""

from __future__ import annotations

from t2ictl.shapes.world import COLORS, SHAPES

#: Things that the image model does not know; they teach that nouns, not shapes, are what attributes belong to.
EVERYDAY = (
    *("dog", "cat", "horse", "bird", "house", "tree", "car", "boat", "table", "chair", "cup", "book", "ball"),
    *("flower", "apple", "lamp", "hat", "shoe", "man", "woman", "child", "box", "bottle", "clock", "door"),
    *("window", "bench", "fence", "stone", "fish"),
)
PLURALS = {
    **{noun: noun + "s" for noun in (*SHAPES, *EVERYDAY)},
    **{"cross": "crosses", "box": "boxes", "bench": "benches", "fish": "fish"},
    **{"man": "men", "woman": "women", "child": "children"},
}
MORE_COLORS = ("orange", "white", "black", "brown", "pink", "gray")
ALL_COLORS = (*COLORS, *MORE_COLORS)
EVERYDAY_ADJECTIVES = (
    *("old", "new", "wooden", "shiny", "tall", "happy", "quiet", "bright", "dark", "broken", "soft", "heavy"),
    *("little", "empty"),
)
NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five"}
#: Every other word that sentences are made of.
GLUE = (
    *("a", "an", "the", "and", "but", "or", "with", "without", "no", "not", "of", "in", "on", "at", "to", "from"),
    *("is", "are", "stands", "stand", "lies", "lie", "sits", "has", "have", "there", "here", "it", "they", "them"),
    *("its", "this", "that", "which", "who", "one", "other", "ones", "both", "all", "only", "also", "neither", "nor"),
    *("left", "right", "above", "below", "under", "over", "next", "beside", "near", "picture", "image", "photo"),
    *("drawing", "we", "see", "shows", "color", "thing", "things", "while", "too", "side", "as", "same", "round"),
    *("nothing", "else", "what", "whose", "painted", "colored", "found", "can", "be", "seen"),
)
