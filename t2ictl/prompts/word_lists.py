"""Word lists of the noun-phrase finder: what the tagger gets wrong in image prompts, and what no tagger says."""

from __future__ import annotations

from t2ictl.prompts.grammar import COLORS, EITHER, OBJECTS, TEXTURES, VIEWS

# One letter per word: d article or possessive, B before an article, D number or quantity, A attribute, N noun,
# E either, R adverb, O pronoun, P possessive 's, F of, H with, C and/or, I other preposition, V finite verb, W opens a
# clause, X where something is or a mark that parts, Q quote or bracket. Until resolved: U finite verb or noun, G in
# -ing, T participle; then G is one that opens a clause. Later lists win; what they leave out is left to the tagger.
WORDS = {
    word: letter
    for letter, words in (
        ("A", " ".join(COLORS | TEXTURES)), ("N", " ".join(OBJECTS)),
        ("N", """bear bears bristles doily handle leaves mop moped peel picks sail sink sinks sprinkles stem stems stick
            stop tabby trim trolly turn watch bed flatbed shed sled seed feed speed hundred chop urinal"""),
        ("U", """hang rest snatches take paint jump swim wait show sleep follow pull ride hit talk line tows surfs
            squints sails leaps chases grazes stretches balances steps swings drinks presses map_hooks perches sports
            skis ties rolls tops contrasts sprawls faces covers handles"""),
        ("V", """is are was were be am has have had can do sat stood held wore lay stares talks jumps proceeds
            rides drives features smiles sits stands lays lies holds looks flies plays eats hangs shows throws"""),
        ("E", " ".join(EITHER)), ("F", "of"), ("H", "with without"), ("C", "/ &"), ("-", "-"), ("P", "'s"), (",", ","),
        ("d", "a an the my our your this these those"), ("B", "all both half such"), ("R", "too so quite rather"),
        ("D", "any every several many few various other same dozen multiple numerous most more"),
        ("O", "something someone anything everything everyone nothing here"), ("I", "next past down nearby like"),
        ("W", "that while as when if but how why than yet because"), ("T", "lit clad made worn cut hung led broken"),
        ("X", "overhead indoors outdoors downhill uphill downwards backwards upstairs downstairs awake whilst"),
    )
    for word in words.split()
}  # fmt: skip
TAGS = "JJ JJR JJS RB RBR RBS CD DT VB VBP VBZ VBD VBN IN TO RP PRP EX PRP$ MD CC WDT WP WP$ WRB".split()
PENN = dict(zip(TAGS, "AAARRRDDUUUUTIIIOOdVCWWWW", strict=True))
QUOTES = "'\"`()[]{}\u2018\u2019\u201c\u201d\u00ab\u00bb"
DYES = COLORS | TEXTURES
# Forms in -ing that are nouns or stand in compounds; after a noun those of DEEDS are what it does.
DEEDS = frozenset(
    "boarding snowboarding skateboarding skiing surfing swimming cooking cutting painting writing".split()
)
GERUNDS = DEEDS | frozenset("""living dining parking building ceiling clothing railing awning crossing wedding wing
    icing frosting flooring bathing lettering scaffolding shelving carpeting evening morning string ring king swing
    topping lighting serving shopping watering pudding bedding siding setting opening""".split())  # fmt: skip
# These describe the noun after them even if nothing stands before ("sleeping cats"), the next never ("wearing hats").
STATES = frozenset("""sleeping smiling resting grazing sitting standing flying running walking laughing glowing
    floating shining hanging jumping blooming burning melting moving rising matching""".split())  # fmt: skip
TAKING = frozenset("""wearing holding carrying riding having using pulling eating playing catching throwing showing
    featuring making taking doing containing""".split())  # fmt: skip
# With the noun before them these describe the noun after them: "snow covered hills", but "a cake decorated with".
COMPOUNDING = frozenset("""covered lined shaped colored coloured haired striped checkered themed tiled sized sleeved
    handled wheeled flavored framed trimmed sliced stuffed eyed capped clothed clad drawn""".split())  # fmt: skip
# Plurals of things that are verbs only before a determiner; the next are hardly ever nouns.
COUNTED = frozenset("steps drinks crosses covers faces flops handles map_hooks skis ties rolls tops".split())
STRONG = frozenset("sit hold lie lay graze wear eat look hang play roam".split())
PLURALS = frozenset("people men women children cattle sheep geese mice fish deer".split())
# Before "of" a word of quantity, kind or image and no thing of its own.
QUANTITIES = VIEWS | frozenset(
    "stack pile piece string sheet herd flock crowd plenty load dozen handful amount".split()
)
TOOLS = frozenset("fork knife spoon spatula chopstick racket racquet bat brush scissor stick".split())
BODY = frozenset("mouth hand lap face head neck beak arm paw back".split())
APART = frozenset("behind beside near next around background foreground distance".split())
PAIRS = {"each other": "O", "one another": "O", "close up": "N", "cross country": "A"}
