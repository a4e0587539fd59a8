"""Writes texts to measure with, as JSON lines: {"text": "..."}; the same ones every time.

    python3 texts.py FILE [COUNT]

COUNT is 10,000 unless given. Texts have 3 to 200 words, most of them few, as sentences and paragraphs do: the median is 13 words, the mean 36.
"""

import json
import random
import sys

NOUNS = """river bridge teacher engine market forest window doctor letter garden winter captain kitchen mountain painter village
computer station harbour library machine lawyer planet bottle orchestra factory island theory customer satellite recipe
vaccine language election glacier keyboard contract violin airport student protein budget lantern museum railway shadow
telescope passenger storm network journalist""".split()
ADJECTIVES = """old quiet bright narrow expensive northern broken careful green heavy unexpected public golden distant modern
gentle crowded frozen invisible reliable ancient curious digital electric enormous fragile honest local wooden""".split()
VERBS = """repairs follows describes measures paints forgets crosses studies builds questions carries ignores explains delivers
remembers replaces watches admires translates inspects protects finishes discovers compares""".split()
ADVERBS = """slowly often rarely carefully suddenly almost never twice again quietly together outside tomorrow elsewhere
surprisingly""".split()
PLACES = """in Lisbon|near the coast|behind the station|at the end of the street|under the old roof|in the third chapter|on Mars|
beside the lake|in 1987|during the night|after the meeting|before sunrise|for 25 euros|without a map""".replace("\n", "").split("|")
JOINTS = [", and", ", but", ", because", ", while", "; meanwhile", ", although", ", which means that", ". Later"]


def clause(choose):
    def thing():
        noun = choose(NOUNS)
        return [choose(["the", "one", "every", "this", "no"])] + ([choose(ADJECTIVES)] if choose([0, 1]) else []) + [noun]

    words = thing() + ([choose(ADVERBS)] if choose([0, 0, 1]) else []) + [choose(VERBS)] + thing()
    return words + (choose(PLACES).split() if choose([0, 1]) else [])


def text(generator):
    length = round(3 * (200 / 3) ** (generator.random() ** 1.5))
    words = clause(generator.choice)
    while len(words) < length:
        joint = generator.choice(JOINTS)
        punctuation, _, word = joint.partition(" ")
        words[-1] += punctuation
        words += word.split() + clause(generator.choice)
    words = words[:length]
    words[-1] = words[-1].rstrip(",;.") + generator.choice([".", ".", ".", "?", "!"])
    sentence = " ".join(words)
    return sentence[0].upper() + sentence[1:]


def main(path, count=10_000):
    generator = random.Random(2305)
    with open(path, "w", encoding="utf-8") as file:
        for _ in range(int(count)):
            file.write(json.dumps({"text": text(generator)}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
