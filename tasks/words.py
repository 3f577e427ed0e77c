"""Common English words of three to eight letters for the spelling kinds; lower case, ASCII, no palindromes, none
twice."""

from __future__ import annotations

__all__ = ["WORDS"]

_TEXT = """
and ant arm art bag bar bat bed bee big box boy bus cap car cat cow cup cut day dog ear eat egg end fan far few fish fit fly fox fun
get hat hen hit hot ice ink jam jar job key kid leg lid lip log man map mat men mix net new nut oak old one owl pan pen pet pig pin
pot rat red row run sea set sit sky son sun tea ten tie tin top toy tub two van wet win yes zoo
baby back ball band bank bear bell bird blue boat body bone book bowl cake call card city coat cold cook corn crab desk dish door
down drum duck face farm fast fire five flag foot fork four frog game gate gift girl goat gold good hair hand hill home hook horn
jump king kite lake lamp land leaf left line lion long look love milk mind moon moss name nest nine open park path pink pool rain
ring road rock roof room root rose salt sand seed shoe shop sing snow soap sock song star stem tail tall tree wall wind wolf wood
angel apple bacon beach berry black bread brick bring broom brown chair chess class cliff clock cloud daddy dress earth floor fruit
funny glass grape grass green happy heart honey horse house juice knife lemon light llama mango money mouse music night ocean
onion paint paper peach penny phone plant puppy queen river robin salad seven sheep sleep smile snake spoon stone sugar sweet
table tiger toast tooth train water wheel white woods world zebra
banana basket bottle bridge butter button carrot cheese circle coffee cookie dinner doctor dollar father finger flower forest
garden hammer island jacket ladder letter lizard market mirror monkey mother needle orange pepper pillow planet potato puddle
rabbit rocket school silver spider spring square street summer sunset ticket tomato turtle violin wallet window winter yellow
balloon blanket brother cabbage chicken cricket curtain feather giraffe hamster kitchen lettuce morning mustard pancake picture
popcorn rainbow sausage scissors sunrise teacher unicorn village weather whistle
airplane blossom computer dinosaur elephant football hospital mountain necklace notebook painting sandwich sunshine umbrella
"""

WORDS: tuple[str, ...] = tuple(_TEXT.split())
