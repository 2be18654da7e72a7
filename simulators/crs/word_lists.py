"""Words of a furniture shop, for generated catalogues that people read: 20 types of 12 values, and kinds of items."""

from __future__ import annotations

TYPES: dict[str, tuple[str, ...]] = {
    name: tuple(word.strip() for word in words.split(","))
    for name, words in {
        "colour": "red, blue, green, black, white, grey, brown, yellow, orange, pink, purple, beige",
        "material": "oak, pine, steel, glass, cotton, wool, leather, bamboo, marble, linen, rattan, ceramic",
        "brand": "Alder & Fen, Northway, Velmora, Kestrel, Brightside, Lumora, Harrow, Solvig, Tarn, Ostra, "
        "Elm Row, Quill",
        "price": "under 10, 10 to 20, 20 to 40, 40 to 60, 60 to 100, 100 to 150, 150 to 250, 250 to 400, 400 "
        "to 600, 600 to 1000, 1000 to 2000, over 2000",
        "style": "modern, classic, rustic, industrial, minimal, coastal, country, retro, baroque, art deco, "
        "urban, boho",
        "room": "kitchen, bedroom, office, bathroom, garden, hall, nursery, living room, dining room, attic, "
        "cellar, balcony",
        "finish": "matt, glossy, brushed, polished, lacquered, oiled, waxed, painted, stained, raw, gilded, glazed",
        "pattern": "plain, striped, checked, dotted, floral, woven, herringbone, tartan, paisley, marbled, "
        "damask, zigzag",
        "size": "tiny, small, compact, medium, large, extra large, narrow, wide, low, tall, slim, oversized",
        "origin": "Denmark, Italy, Portugal, Japan, India, Poland, Sweden, Mexico, Turkey, Vietnam, Kenya, Canada",
        "feature": "foldable, stackable, adjustable, on wheels, with storage, reversible, extendable, "
        "waterproof, cordless, dimmable, heated, modular",
        "shape": "round, square, oval, rectangular, hexagonal, curved, angular, L-shaped, arched, conical, "
        "twisted, tiered",
        "care": "wipe clean, machine wash, hand wash, dry clean, dust only, vacuum, oil yearly, polish, "
        "rinse, steam, brush, air",
        "delivery": "same day, next day, two days, one week, two weeks, by appointment, pick-up, at night, by "
        "bicycle, at weekends, flat packed, assembled",
        "warranty": "none, six months, one year, two years, three years, four years, five years, seven years, "
        "ten years, fifteen years, twenty years, lifetime",
        "label": "organic, fair trade, recycled, vegan, hypoallergenic, low emission, handmade, local, "
        "refurbished, plastic free, repairable, certified wood",
        "season": "spring, summer, autumn, winter, all year, rainy days, holidays, harvest, midsummer, new "
        "year, Easter, monsoon",
        "occasion": "birthday, wedding, moving in, anniversary, party, picnic, everyday, graduation, camping, "
        "dinner, new baby, retirement",
        "comfort": "soft, firm, padded, springy, ergonomic, reclining, rocking, high back, low back, armless, "
        "swivel, floor level",
        "mood": "calm, bold, cosy, airy, playful, elegant, earthy, dark, bright, warm, cool, nostalgic",
    }.items()
}

ADJECTIVES = ("material", "colour")
"""Types whose values stand before the kind in an item's name, the first that it has."""

KINDS = (
    *("chair", "table", "lamp", "sofa", "shelf", "desk", "bench", "stool", "mirror", "rug", "vase", "clock"),
    *("cabinet", "bed", "basket", "tray", "cushion", "curtain", "screen", "rack", "trunk", "bowl", "planter", "ladder"),
)


def type_names(count: int) -> tuple[str, ...]:
    """So many different names; past the list, numbered ones."""
    return _cycled(tuple(TYPES), count)


def value_names(kind: int, count: int) -> tuple[str, ...]:
    """So many different names of values of the type with this index."""
    return _cycled(TYPES[tuple(TYPES)[kind % len(TYPES)]], count)


def _cycled(words: tuple[str, ...], count: int) -> tuple[str, ...]:
    numbered = (divmod(index, len(words)) for index in range(count))
    return tuple(words[place] if not turn else f"{words[place]} {turn + 1}" for turn, place in numbered)
