"""Word lists of the prompt parsers: what a tagger of newspaper English gets wrong in prompts, and what no tagger knows.

The tags are explained in :mod:`t2ictl.prompts.tagging`.
"""

from __future__ import annotations

import re


class Lemmas(frozenset[str]):
    """Base forms; a form in -s or -es counts as its base form."""

    def __contains__(self, word: object) -> bool:
        forms = (str(word), str(word).removesuffix("s"), str(word).removesuffix("es"))
        return any(frozenset.__contains__(self, form) for form in forms)


class Ending:
    """All words with an ending, a regular expression."""

    def __init__(self, pattern: str) -> None:
        self._pattern = re.compile(rf"(?:{pattern})\Z")

    def __contains__(self, word: object) -> bool:
        return bool(self._pattern.search(str(word)))


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _lemmas(text: str) -> Lemmas:
    return Lemmas(text.split())


def _tagged(*lists: tuple[str, str]) -> dict[str, str]:
    """Map each word to its tag; later lists win."""
    return {word: tag for tag, words in lists for word in words.split()}


# --- what words are, for every reader ---------------------------------------------------------------------------------

COLORS = _words("""red yellow green cyan blue purple pink brown black white gray grey beige teal maroon turquoise
    magenta crimson scarlet navy azure ivory tan khaki multicolored multicoloured colorful colourful golden reddish
    blueish bluish greenish yellowish purplish brownish""")
# With the colors: an attribute, and never an object.
ATTRIBUTES = COLORS | _words("""striped dotted spotted checkered chequered checked plaid plain wooden woolen metallic
    fluffy furry hairy fuzzy feathery spiky smooth rough shiny glossy matte transparent translucent frosted patterned
    floral polka-dot small medium large big tiny huge little tall short long wide narrow thick thin gigantic round
    circular oblong rectangular triangular cubic spherical conical cylindrical pyramidal hexagonal pentagonal
    star-shaped heart-shaped diamond-shaped curved flat hollow filled solid sharp pointed old young new ancient modern
    vintage rusty dirty clean wet dry frozen sleepy cute beautiful asleep awake alone open closed broken bright dark
    pale vivid deep left right upper lower front back""")
# Attribute before a noun or another attribute ("a glass bowl", "a square table"), object otherwise ("a glass").
EITHER = _words("""orange gold silver bronze copper rose lime olive peach coral salmon cream chocolate mint lemon
    lavender violet indigo metal glass leather plastic rubber fabric wood stone brick marble paper cotton wool silk
    velvet denim steel iron concrete ceramic clay crystal porcelain cardboard straw bamboo lace tin fur foam square oval
    diamond teardrop crescent light baby giant miniature antique""")
OBJECTS = _words("""circle triangle star cross ring heart hexagon pentagon cube sphere cone pyramid cylinder ellipse
    rectangle bear bird cat dog elephant frog horse lion monkey mouse rabbit turtle apple backpack balloon bench bow
    bowl car chair clock crown glasses suitcase ball painting drawing building top remote handle handles key""")
LEXICON = _tagged(
    ("A", " ".join(ATTRIBUTES)), ("N", " ".join(OBJECTS)), ("E", " ".join(EITHER)), ("F", "of"),
    ("d", "a an the my our your this these those"),
)  # fmt: skip
MARKS = {"'s": "P", ",": ",", "-": "-", "/": "&", "&": "&"} | dict.fromkeys(
    "'\"`()[]{}\u2018\u2019\u201c\u201d\u00ab\u00bb", "Q"
)
# "a photo of a cat" shows a cat; "a pair of shoes" shows shoes.
VIEWS = _words("""photo photos photograph picture pictures image images painting drawing sketch illustration rendering
    render portrait view close-up closeup shot snapshot depiction artwork art print poster scene pair pairs group bunch
    set couple row lot lots number kind type sort variety collection series assortment pack style""")

# --- objects and their attributes -------------------------------------------------------------------------------------

DYED = _words("painted colored coloured dyed made built")
OBJECT_LEXICON = LEXICON | _tagged(
    ("K", " ".join(DYED)), ("B", "is are was were be being looks look appears appear"), ("C", "and or"),
    ("F", "from out"), ("W", "that which who"), ("D", "many several few some various other another same such"),
    ("I", "next near adjacent above below beneath underneath under over behind beside between inside outside"),
    ("X", """quality resolution masterpiece detail details hdr uhd hd bokeh 4k 8k lighting something someone anything
        everything has have had wears wearing holds holding carries carrying"""),
)  # fmt: skip
PLACES = _words("""left right top bottom front back side sides middle center centre edge corner foreground background
    distance upper lower hand end inside outside""")
COMPOUNDS = _words("""hot-dog hot-dogs potted-plant potted-plants polar-bear polar-bears ice-cream soda-can paper-clip
    paper-clips paper-towel light-bulb light-fixture light-switch cream-cheese watering-can""")
# Before a noun what it is for, not what it does: "a cutting board", but "a sleeping cat".
PURPOSES = _words("living cutting serving measuring mixing frying hiking magnifying sewing swimming")
# Verbs that the tagger takes for nouns: "the clouds drift over the lake".
RESTING = _lemmas("rest drift float gleam shine glow sparkle rattle clink simmer slide creak hang lean lie sit")

# --- noun phrases -----------------------------------------------------------------------------------------------------

PHRASE_LEXICON = LEXICON | _tagged(
    ("N", """bears bristles doily leaves mop moped peel picks sail sink sinks sprinkles stem stems stick stop tabby
        trim trolly turn watch bed flatbed shed sled seed feed speed hundred chop urinal"""),
    ("U", """rest snatches take paint jump swim wait show sleep follow pull ride hit talk line tows surfs squints sails
        leaps chases grazes stretches balances steps swings drinks presses watches perches sports skis ties rolls tops
        contrasts sprawls faces covers handles"""),
    ("Y", "hang"), ("V", "is are was were be am has have had can do sat stood held wore lay"),
    ("S", """stares talks jumps proceeds rides drives features smiles sits stands lays lies holds looks flies plays eats
        hangs shows throws"""),
    ("H", "with without"), ("p", "all both half such"), ("R", "too so quite rather"),
    ("D", "any every several many few various other same dozen multiple numerous most more"),
    ("O", "something someone anything everything everyone nothing here"), ("I", "next past down nearby like"),
    ("W", "that while as when if but how why than yet because whose"), ("T", "lit clad made worn cut hung led broken"),
    ("X", "overhead indoors outdoors downhill uphill downwards backwards upstairs downstairs awake whilst"),
)  # fmt: skip
# Forms in -ing that are nouns or stand in compounds; after a noun those of DEEDS are what it does.
DEEDS = _words("boarding snowboarding skateboarding skiing surfing swimming cooking cutting painting writing")
GERUNDS = DEEDS | _words("""living dining parking building ceiling clothing railing awning crossing wedding wing icing
    frosting flooring bathing lettering scaffolding shelving carpeting evening morning string ring king swing topping
    lighting serving shopping watering pudding bedding siding setting opening""")
# These describe the noun after them even if nothing stands before ("sleeping cats"), the next never ("wearing hats").
STATES = _words("""sleeping smiling resting grazing sitting standing flying running walking laughing glowing floating
    shining hanging jumping blooming burning melting moving rising matching""")
TAKING = _words("""wearing holding carrying riding having using pulling eating playing catching throwing showing
    featuring making taking doing containing""")
# With the noun before them these describe the noun after them: "snow covered hills", but "a cake decorated with".
COMPOUNDING = _words("""covered lined shaped colored coloured haired striped checkered themed tiled sized sleeved
    handled wheeled flavored framed trimmed sliced stuffed eyed capped clothed clad drawn""")
# Plurals of things that are verbs only before a determiner; the next are hardly ever nouns.
COUNTED = _words("steps drinks crosses covers faces flops handles watches skis ties rolls tops")
STRONG = _words("sit hold lie graze wear eat look hang play roam")
MODALS = _words("to can could will would may must")
PLURALS = _words("people men women children cattle sheep geese mice fish deer")
# Before "of" a word of quantity, kind or view and no thing of its own.
QUANTITIES = Lemmas(VIEWS | _words("stack pile piece string sheet herd flock crowd plenty load dozen handful amount"))
TOOLS = _lemmas("fork knife spoon spatula chopstick racket racquet bat brush scissor stick")
BODY = _lemmas("mouth hand lap face head neck beak arm paw back")
APART = _words("behind beside near next around background foreground distance")
PAIRS = {"each other": "O", "one another": "O", "close up": "N", "cross country": "A"}

# --- what belongs to which object -------------------------------------------------------------------------------------

# A creature is never an accessory.
CREATURES = _lemmas("""cat kitten dog puppy bear panda rabbit bunny goat lion tiger fox horse pony penguin cow calf bull
    sheep lamb pig elephant giraffe zebra monkey gorilla mouse rat frog toad turtle tortoise bird chicken hen rooster
    duck goose swan owl parrot eagle fish shark whale dolphin wolf deer squirrel hamster hedgehog raccoon koala kangaroo
    camel llama alpaca donkey snake lizard crocodile dinosaur dragon unicorn otter beaver crab octopus bee butterfly
    animal creature man men woman women boy girl person people child children kid baby toddler guy lady gentleman male
    female adult player surfer skier skater snowboarder rider driver chef doctor nurse teacher student soldier officer
    policeman king queen prince princess knight pirate wizard witch clown dancer astronaut robot alien snowman
    mermaid""")
# What is worn, and what a creature has of itself: the only accessories that "in" and lists after a creature may add.
WORN = _lemmas("""hat cap helmet crown tiara beanie beret headband headphones hood mask goggles glasses sunglasses
    eyeglasses scarf tie bow bowtie necktie collar necklace bracelet ring earring pendant medal ribbon belt watch badge
    cape cloak coat jacket vest sweater hoodie shirt t-shirt tshirt top blouse dress skirt gown robe kimono suit tuxedo
    uniform costume outfit pants jeans shorts trousers capris leggings apron armor shoe boot sandal slipper sock glove
    mitten backpack bag purse bandana bandanna pajamas wetsuit swimsuit bikini overalls umbrella hair beard moustache
    mustache eye ear nose paw tail mane horn tusk wing beak leg stripe spot""")
# Too large to be on a creature or part of a thing; a new object of the image in a list.
LARGE = _lemmas("""car truck bus train van boat ship airplane plane bicycle bike motorcycle scooter bench chair sofa
    couch table desk bed house building tower barn tree suitcase refrigerator oven television""")
# Where an image is set: no accessory, and what is "with" it are neighbors.
SCENERY = _lemmas("""background backdrop foreground scene sky cloud sun moon star sunset sunrise field grass meadow
    forest wood mountain hill desert beach sea ocean lake river water snow street road park lot city garden yard
    landscape view""")
ROOMS = _lemmas("room bathroom bedroom kitchen office hallway studio house home building apartment")
NAMED = frozenset({"rubber band", "rubber bands"})  # one thing each; merging band without rubber shows another thing
HUES = _words("orange gold silver bronze copper rose lime peach cream violet lavender")
STANDING = "sitting standing lying laying walking running smiling posing"
PREDICATE_VERBS = DYED | _words(f"""{STANDING} sit sits stand stands lie lies stay stays remain remains seem seems
    looked appeared seemed""")
INTENSIFIERS = _words("very rather quite really extremely slightly so too all")
