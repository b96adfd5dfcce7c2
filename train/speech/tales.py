"""Template stories: text of a small vocabulary that needs no file, for demonstrations and tests.

A document is a topic; its sentences are all combinations of a template's words, in an order that never changes. A model
that has heard an hour of it can know the words and which of them belong together.
"""

from collections.abc import Iterator
from itertools import product
from zlib import crc32

# topic -> who, what they are like, what they do, with what, where
TOPICS: dict[str, tuple[str, str, str, str, str]] = {
    "sea": (
        "sailor captain fisherman diver",
        "old brave tired",
        "repaired watched painted followed borrowed",
        "boat net sail anchor compass",
        "near the harbor,on the ocean,by the lighthouse,under the bridge",
    ),
    "farm": (
        "farmer shepherd milkmaid plowman",
        "strong quiet honest",
        "counted fed carried sold inspected",
        "sheep chickens barley turnips donkey",
        "in the barn,behind the fence,across the meadow,beside the orchard",
    ),
    "school": (
        "teacher pupil scholar librarian",
        "clever patient young",
        "studied copied explained remembered forgot",
        "lesson poem alphabet dictionary grammar",
        "in the classroom,at the blackboard,before the examination,after the lecture",
    ),
    "kitchen": (
        "cook baker waiter grandmother",
        "hungry cheerful careful",
        "tasted boiled stirred served burned",
        "soup pudding pancake gravy cabbage",
        "over the stove,from the oven,with a spoon,during the supper",
    ),
    "court": (
        "judge lawyer prisoner witness",
        "solemn guilty famous",
        "denied signed questioned accepted believed",
        "verdict contract evidence promise accusation",
        "before the jury,inside the prison,without a doubt,against the law",
    ),
    "music": (
        "singer drummer violinist conductor",
        "gifted nervous elegant",
        "rehearsed whistled composed performed admired",
        "melody symphony chorus waltz ballad",
        "at the opera,on the stage,through the evening,for the audience",
    ),
    "snow": (
        "hunter skier explorer trapper",
        "frozen lonely bold",
        "crossed climbed reached mapped abandoned",
        "glacier mountain valley summit cavern",
        "in the winter,through the blizzard,above the clouds,towards the north",
    ),
    "factory": (
        "engineer mechanic foreman welder",
        "busy skilled stubborn",
        "assembled tested oiled hammered polished",
        "engine machine boiler turbine pipeline",
        "inside the workshop,until the whistle,with a wrench,along the railway",
    ),
}


def tales() -> Iterator[tuple[str, str]]:
    """(topic, its 1,200 sentences as text), by topic; no sentence twice."""
    for topic, (who, like, did, things, places) in TOPICS.items():
        every = product(like.split(), who.split(), did.split(), things.split(), places.split(","))
        made = [f"The {a} {b} {c} the {d} {e}." for a, b, c, d, e in every]
        yield topic, " ".join(sorted(made, key=lambda sentence: crc32(sentence.encode()[::-1])))
