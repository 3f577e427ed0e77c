r"""The vocabulary of mathematical answers: characters, synonymous commands, names, units, numbers in words."""

from collections.abc import Mapping

__all__ = [
    "ALIASES",
    "FUNCTIONS",
    "GREEK",
    "LINKS",
    "MATHEMATICAL_TEXT",
    "NAMES",
    "NUMBER_WORDS",
    "ONE_LETTER_UNITS",
    "SHORT_WORDS",
    "TEXT_COMMANDS",
    "UNICODE",
    "UNITS",
    "UNIT_WORDS",
    "words",
]


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _by_spelling(text: str) -> dict[str, str]:
    """Map each spelling to its meaning, which comes first. Entries end with "; " or their line."""
    entries = (entry.split() for entry in text.strip().replace("; ", "\n").splitlines())
    return {spelling: meaning for meaning, *spellings in entries for spelling in spellings}


_NUMBERS = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen twenty
"""
NUMBER_WORDS: Mapping[str, int] = {word: number for number, word in enumerate(_NUMBERS.split())}

UNICODE: Mapping[str, str] = {
    **dict.fromkeys("\u2212\ufe63\uff0d\u2010\u2011\u2012\u2013\u2014", "-"),
    **dict.fromkeys("\u00b7\u22c5\u2219\u00d7\u2217", "*"),
    **dict.fromkeys("\u00a0\u202f\u2009", " "),
    **{"㎡": r"\text{ m}^2 ", "㎥": r"\text{ m}^3 ", "㎠": r"\text{ cm}^2 ", "㎤": r"\text{ cm}^3 ", "㎢": r"\text{ km}^2 "},
    **{"℃": r"^\circ C", "℉": r"^\circ F", "’": "'"},
    **{"÷": "/", "∕": "/", "⁄": "/", "√": r"\sqrt ", "π": r"\pi ", "∞": r"\infty ", "°": r"^\circ ", "º": r"^\circ ", "′": "'"},
    **{"≤": r"\le ", "⩽": r"\le ", "≥": r"\ge ", "⩾": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "±": r"\pm ", "∓": r"\mp "},
    **{"∑": r"\sum ", "∏": r"\prod "},
    **{"∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\varnothing ", "ℝ": r"\mathbb{R}", "∖": r"\setminus "},
    **{"⟨": r"\langle ", "⟩": r"\rangle ", "€": r"\$", "£": r"\$", "¢": r"\text{cents}"},
    **{"½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "⅕": r"\frac{1}{5}"},
    **{"⅙": r"\frac{1}{6}", "⅚": r"\frac{5}{6}", "⅛": r"\frac{1}{8}", "⅜": r"\frac{3}{8}", "⅝": r"\frac{5}{8}", "⅞": r"\frac{7}{8}"},
    **{"α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ", "δ": r"\delta ", "ε": r"\epsilon ", "θ": r"\theta ", "λ": r"\lambda "},
    **{"μ": r"\mu ", "φ": r"\phi ", "ω": r"\omega "},
}

ALIASES: Mapping[str, str] = _by_spelling(r"""
\frac dfrac tfrac cfrac nicefrac sfrac; \binom dbinom tbinom; * times cdot ast star bullet; / div slash
\le leq leqslant leqq; \ge geq geqslant geqq; \ne neq; < lt; > gt; \approx thickapprox simeq; \Rightarrow implies to
| lvert rvert vert mid; ( lparen; ) rparen; [ lbrack; ] rbrack; \{ lbrace; \} rbrace; , land lor wedge vee; : colon; ' prime
% percent; \$ euro pounds textdollar; i imath; \ldots dots cdots dotsc dotsb; \infty infin infinity inf; \overline bar; \varnothing emptyset
\setminus backslash; \cup bigcup; \phi varphi; \epsilon varepsilon; \theta vartheta
""")
"""What commands, here without their backslash, are read as."""

FUNCTIONS = words(r"\sin \cos \tan \cot \sec \csc \arcsin \arccos \arctan \sinh \cosh \tanh \log \ln \exp \gcd \lcm \max \min")
GREEK = words(r"""
\theta \alpha \beta \gamma \delta \epsilon \lambda \mu \nu \xi \rho \sigma \tau \phi \psi \omega \eta \zeta \kappa \ell
\Delta \Gamma \Theta \Lambda \Sigma \Phi \Psi \Omega
""")
NAMES = words("""
arcsin arccos arctan sinh cosh tanh sin cos tan cot sec csc log ln exp gcd lcm max min sqrt frac binom pi infty theta alpha beta
infinity inf
""")
"""Names that are mathematics even without a backslash."""

UNITS: Mapping[str, str] = _by_spelling("""
cm cm centimeter centimeters centimetre centimetres; mm mm millimeter millimeters; m m meter meters metre metres
km km kilometer kilometers; in in inch inches; ft ft foot feet; yd yd yard yards; mi mi mile miles
s s sec second seconds; min min minute minutes mins; h h hr hrs hour hours; am am AM a.m. a.m; pm pm PM p.m. p.m
day day days; week week weeks; month month months; year year years yr yrs
g g gram grams; kg kg kilogram kilograms; lb lb lbs pound pounds; oz oz ounce ounces
l l L liter liters litre litres; ml ml mL milliliter milliliters; dollar $ dollar dollars usd USD; cent cent cents
mph mph mi/h mi/hr; km/h kph km/h km/hr; degree degree degrees °; radian rad radian radians
""")
"""The known units by spelling. Two different ones conflict."""

UNIT_WORDS = words(
    "cm mm km dm kg mg lb lbs oz ft mi yd in hr hrs min sec ml mL pm am PM AM sq cu cc mph kph rpm deg rad usd USD Hz kW kJ kN MB GB eV"
)
"""Short words that are units even if they touch the number."""
ONE_LETTER_UNITS = frozenset("mgsLlhΩ")
LINKS = words("and or")
SHORT_WORDS = UNIT_WORDS | LINKS | words("is no to of if an")

TEXT_COMMANDS = words("""
text textbf textit textrm textsf texttt textsc textup textnormal mbox hbox mathrm mathbf mathit mathsf mathtt operatorname boldsymbol bm
emph underline boxed fbox
""")
MATHEMATICAL_TEXT = words("mathrm mathbf mathit mathsf mathtt operatorname boldsymbol bm underline boxed fbox")
"""Text commands in which a single letter is a symbol."""
