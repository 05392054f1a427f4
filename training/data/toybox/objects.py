"""Which objects the Toybox uses by default, and adjectives that captions may put before them."""

# Chosen to differ in colour and outline at 24 pixels, to stand out from every background and to show when they are
# turned (no plain balls).
DEFAULT_OBJECTS = (
    "car", "bus", "locomotive", "tractor", "rocket", "helicopter", "sailboat", "panda", "penguin", "duck", "owl",
    "parrot", "frog", "fox", "pig", "unicorn", "elephant", "lion", "cow", "whale", "tropical fish", "crab",
    "butterfly", "bee", "squid", "dinosaur", "chick", "sunflower", "cactus", "mushroom", "watermelon", "banana",
    "strawberry", "eggplant", "pizza", "hamburger", "cupcake", "teddy bear", "pumpkin", "guitar", "umbrella",
    "diamond", "crown", "top hat", "television", "magnet", "house", "snowman",
)  # fmt: skip

# Only adjectives that are true of the picture: they let "a red car" be understood.
ADJECTIVES = {
    "car": "red",
    "bus": "orange",
    "tractor": "green",
    "helicopter": "orange",
    "penguin": "purple",
    "duck": "white",
    "owl": "brown",
    "parrot": "colourful",
    "frog": "green",
    "fox": "orange",
    "pig": "pink",
    "unicorn": "white",
    "elephant": "grey",
    "lion": "orange",
    "whale": "blue",
    "tropical fish": "blue",
    "crab": "red",
    "butterfly": "orange",
    "squid": "pink",
    "dinosaur": "green",
    "chick": "yellow",
    "sunflower": "yellow",
    "cactus": "green",
    "mushroom": "red",
    "watermelon": "red",
    "banana": "yellow",
    "strawberry": "red",
    "eggplant": "purple",
    "cupcake": "pink",
    "teddy bear": "brown",
    "pumpkin": "orange",
    "guitar": "red",
    "umbrella": "purple",
    "diamond": "blue",
    "crown": "golden",
    "top hat": "black",
    "television": "grey",
    "magnet": "red",
    "snowman": "white",
}
