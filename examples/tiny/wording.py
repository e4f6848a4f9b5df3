"""The fixed text of the tasks: phrasings, countries and capitals, names, words."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Phrasings:
    """Wordings of one task; valid and test are filled only where the split is by phrasing."""

    train: tuple[str, ...]
    valid: tuple[str, ...] = ()
    test: tuple[str, ...] = ()


PHRASINGS: dict[str, Phrasings] = {
    "add": Phrasings(
        ("What is {a} + {b}?", "Add {a} and {b}.", "Compute {a} + {b}.", "How much is {a} plus {b}?")
    ),
    "subtract": Phrasings(
        ("What is {a} - {b}?", "Subtract {b} from {a}.", "Compute {a} - {b}.", "How much is {a} minus {b}?")
    ),
    "reverse": Phrasings(
        (
            "Reverse the word {word}.",
            "Reverse: {word}.",
            "Spell {word} backwards.",
            "What is {word} reversed?",
        )
    ),
    "upper": Phrasings(
        (
            "Write {word} in upper case.",
            "Upper-case the word {word}.",
            "What is {word} in capital letters?",
            "Put {word} in capital letters.",
        )
    ),
    "count": Phrasings(
        (
            "How many letters are in {word}?",
            "Count the letters of {word}.",
            "How long is the word {word}?",
            "How many letters does {word} have?",
        )
    ),
    "first": Phrasings(
        (
            "What is the first letter of {word}?",
            "Give the first letter of {word}.",
            "Which letter does {word} start with?",
        )
    ),
    "last": Phrasings(
        (
            "What is the last letter of {word}?",
            "Give the last letter of {word}.",
            "Which letter does {word} end with?",
        )
    ),
    "sort": Phrasings(
        (
            "Sort {numbers}.",
            "Sort these numbers: {numbers}.",
            "Put {numbers} in ascending order.",
            "Order {numbers} from smallest to largest.",
        )
    ),
    "compare": Phrasings(
        (
            "Which is {which}, {a} or {b}?",
            "Which number is {which}: {a} or {b}?",
            "Of {a} and {b}, which is {which}?",
        )
    ),
    "parity": Phrasings(("Is {a} even or odd?", "Is the number {a} odd or even?", "Even or odd: {a}?")),
    "json": Phrasings(
        (
            "{name} is {age} years old. Write name and age as JSON.",
            "Write name and age as JSON: {name}, {age}.",
            "Give the name and age as JSON: {name} is {age}.",
            "Name and age as JSON: {name} is {age} years old.",
        )
    ),
    "greet": Phrasings(
        ("Greet {name}.", "Say hello to {name}.", "Greet {name} by name.", "Write a greeting to {name}.")
    ),
    "capital": Phrasings(
        train=(
            "What is the capital of {country}?",
            "Name the capital of {country}.",
            "Which city is the capital of {country}?",
            "Tell me the capital of {country}.",
            "What is the capital city of {country}?",
            "Give the capital of {country}.",
            "The capital of {country} is called what?",
            "Capital of {country}?",
            "Do you know the capital of {country}?",
            "What city is the capital of {country}?",
            "{country} has which capital?",
            "For {country}, what is the capital?",
            "What capital does {country} have?",
            "Write the name of the capital of {country}.",
        ),
        valid=("Tell me, what is the capital of {country}?", "Which capital does {country} have?"),
        test=(
            "Which city is the capital city of {country}?",
            "Give me the name of the capital of {country}.",
            "The capital city of {country} is called what?",
            "For {country}, name the capital.",
            "Do you know what the capital of {country} is?",
            "What is the name of the capital city of {country}?",
            "{country} has what capital city?",
            "Write the capital of {country}.",
        ),
    ),
    "day": Phrasings(
        train=(
            "What day is {n} days after {day}?",
            "Which day comes {n} days after {day}?",
            "Today is {day}. What day is it in {n} days?",
            "If today is {day}, which day is it in {n} days?",
            "Name the day {n} days after {day}.",
            "Tell me which day is {n} days after {day}.",
            "Give the day that comes {n} days after {day}.",
            "It is {day} today. Which day comes in {n} days?",
            "What day of the week is {n} days after {day}?",
            "{n} days after {day} is which day?",
            "Count {n} days from {day}. What day is it?",
            "Starting from {day}, what day is it after {n} days?",
        ),
        valid=("What day comes {n} days after {day}?", "If it is {day} today, what day is it in {n} days?"),
        test=(
            "Tell me what day is {n} days after {day}.",
            "Today is {day}. Which day is it in {n} days?",
            "Which day of the week comes {n} days after {day}?",
            "It is {day} today. What day is it in {n} days?",
            "{n} days after {day} is what day?",
            "Name the day that comes {n} days after {day}.",
            "If today is {day}, what day of the week is it in {n} days?",
        ),
    ),
}

# Fixed words that reach the questions or answers through slots. The last three belong to a task that was
# dropped (how often a letter occurs); they stay tokens because the trained weights have rows for them.
SLOT_WORDS = "larger bigger greater smaller lower less even odd Hello name age times occur often"

_FIXED_TEXT = " ".join(
    [re.sub(r"\{\w+\}", " ", text) for p in PHRASINGS.values() for text in (*p.train, *p.valid, *p.test)]
    + [SLOT_WORDS]
)
# Letters only, and never a single letter: "a" and "I" must stay what they are, letters that can be counted.
TEMPLATE_WORDS: frozenset[str] = frozenset(re.findall(r"[A-Za-z]{2,}", _FIXED_TEXT))

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

_CAPITALS = """
France:Paris, Germany:Berlin, Italy:Rome, Spain:Madrid, Portugal:Lisbon, Ireland:Dublin, Norway:Oslo,
Sweden:Stockholm, Finland:Helsinki, Denmark:Copenhagen, Iceland:Reykjavik, Poland:Warsaw, Austria:Vienna,
Hungary:Budapest, Greece:Athens, Turkey:Ankara, Bulgaria:Sofia, Romania:Bucharest, Serbia:Belgrade,
Croatia:Zagreb, Ukraine:Kyiv, Latvia:Riga, Lithuania:Vilnius, Estonia:Tallinn, Belgium:Brussels,
Switzerland:Bern, Czechia:Prague, Slovakia:Bratislava, Slovenia:Ljubljana, Japan:Tokyo, China:Beijing,
India:New Delhi, Nepal:Kathmandu, Thailand:Bangkok, Vietnam:Hanoi, Indonesia:Jakarta, Iran:Tehran,
Iraq:Baghdad, Egypt:Cairo, Kenya:Nairobi, Ghana:Accra, Senegal:Dakar, Ethiopia:Addis Ababa,
Morocco:Rabat, Canada:Ottawa, Mexico:Mexico City, Cuba:Havana, Peru:Lima, Chile:Santiago,
Argentina:Buenos Aires, Brazil:Brasilia, Colombia:Bogota, Australia:Canberra, Russia:Moscow
"""
CAPITALS: dict[str, str] = dict(pair.strip().split(":") for pair in _CAPITALS.replace("\n", " ").split(","))

_NAMES = """
Ada Alan Alba Alice Amir Ana Anna Anton Aria Arthur Asha Ben Bela Bruno Carla Carlos Cecil Chen Chloe
Clara Cora Dana Daniel Dario David Diana Dora Edgar Eli Elena Ella Emil Emma Eric Esther Eva Felix Fiona
Frank Frida Gabriel Gina Grace Greta Hana Hannah Hugo Ida Igor Ines Ingrid Irene Iris Ivan Jack Jade
James Jana Jean Joan Jonas Jose Julia Kai Karim Karl Kate Kenji Kira Lars Laura Lea Leo Lena Lina Lola
Louis Lucas Lucy Luis Maja Marco Maria Marta Max Maya Mia Mila Milan Mina Mona Nadia Nils Nina Noah Nora
Olga Oscar Otto Pablo Paul Petra Quinn Rafael Rosa Ruth Sam Sara Simon Sofia Stella Tara Theo Tim Tina
Tom Uma Vera Victor Viola Wanda Yara Yuki Zara Zoe
"""
NAMES = tuple(_NAMES.split())

_WORDS = """
anchor apple autumn badge banana basket battery beach bottle branch bridge bucket butter cabin camera
candle canyon carpet castle cherry circle cloud coffee copper cotton cradle crystal dinner dolphin dragon
eagle engine feather fern field flame flower forest fossil garden ginger glacier guitar hammer harbor
hazel helmet honey island ivory jacket jungle kettle kitten ladder lake lamp lantern lemon lily lizard
magnet maple marble meadow melon mirror mountain needle nest ocean olive onion orange orchard oyster
paddle panda paper parrot peanut pebble pencil penstock pepper piano pillow planet pocket potato prairie
pumpkin puzzle quartz rabbit raccoon rain river robin rocket saddle sail salmon scarf shadow silver
spider spoon spring squirrel station stone storm stream summer sunset table tea temple tiger timber
tomato tulip tunnel turbine turtle valley valve velvet violin walnut water weather whale window winter
wizard wolf yellow zebra zipper
"""
WORDS = tuple(word for word in _WORDS.split() if len(word) <= 6)
