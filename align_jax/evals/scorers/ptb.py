"""COCO's caption tokens, without Java.

pycocoevalcap cuts captions with Stanford's PTBTokenizer 3.4.1
(`-preserveLines -lowerCase`) and then drops a list of marks
(pycocoevalcap/tokenizer/ptbtokenizer.py). This is that tokeniser as far as
English captions need it, written from what the jar gives: contractions and
possessives are set apart, "can not" and "gon na" are two words, abbreviations
keep their period, hyphenated words and numbers stay whole, curved quotes and
HTML entities become plain. tests/golden/ptb.tsv holds what the jar itself
gives for sentences of all these kinds; of 5,742 lines of English prose without
paths it cuts all but 12 as the jar does. Known to differ: "10a.m." and file
paths.

Kept as they are there: brackets become "-lrb-" in lower case and so are not
in the list of dropped marks; "!!" is no "!" and stays.
"""

import html
import re

# What pycocoevalcap drops, PUNCTUATIONS in its ptbtokenizer.py.
DROPPED = frozenset(["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-",
                     ".", "?", "!", ",", ":", "-", "--", "...", ";"])

_ENTITY = re.compile(r"&(?:amp|lt|gt|nbsp|quot|apos);", re.IGNORECASE)
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-",
             "{": "-lcb-", "}": "-rcb-"}
_PLAIN = str.maketrans({"’": "'", "‘": "`", "“": "``", "”": "''",
                        "—": "--", "–": "--", "…": "...",
                        "«": "``", "»": "''"})
_QUOTE = "['’]"

# Words that keep their period; with a capital where they are words too.
_ABBREVIATIONS = (
    "(?i:jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|mon|tues?|wed|thu|thurs"
    "|fri|ala|ariz|calif|colo|conn|ct|dak|fla|ga|ind|kans?|ky|md|mich|minn|mo"
    "|mont|neb|nev|okla|penn|tenn|va|vt|wisc?|wyo|inc|cos?|corp|pp?ty|ltd|plc"
    "|bancorp|dept|bhd|assn|univ|intl|sys|jr|sr|bros|(?:ed|ph)\\.d|blvd|rd|esq"
    "|etc|al|seq|mr|mrs|ms|drs?|profs?|sens?|reps?|attys?|lt|col|gen|messrs"
    "|govs?|adm|rev|maj|sgt|cpl|pvt|capt|ste?|ave|pres|lieut|hon|brig|co?mdr"
    "|pfc|spc|supts?|det|ft|vs|figs?|prop|mt)"
    "|Az|Ark|Del|Ill|La|Mass|Miss|Ore|Pa|Tex|Wash")

_RULES = (
    r"https?://[^\s<>\"]*[^\s<>\".,!?;:)]",
    r"www\.[^\s<>\"]*[^\s<>\".,!?;:)]",
    r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+",
    r"</?[A-Za-z!][^\s<>]*>",
    # Two words written as one; the cut is where the group ends.
    rf"(?i:can)(?=(?i:not)\b)|(?<=can)(?i:not)\b"
    r"|\b(?i:gon|wan)(?=(?i:na)\b)|(?<=\bgon)(?i:na)\b|(?<=\bwan)(?i:na)\b"
    r"|\b(?i:got)(?=(?i:ta)\b)|(?<=\bgot)(?i:ta)\b"
    r"|\b(?i:lem|gim)(?=(?i:me)\b)|(?<=\blem)(?i:me)\b|(?<=\bgim)(?i:me)\b"
    rf"|(?<!\w){_QUOTE}(?i:t)(?=(?i:is|was)\b)"
    rf"|(?<={_QUOTE}t)(?i:is|was)\b",
    rf"\w+(?=(?i:n){_QUOTE}(?i:t)\b)|(?i:n){_QUOTE}(?i:t)\b",
    rf"(?i:o{_QUOTE}clock|ma{_QUOTE}am|[dol]{_QUOTE}[a-z]+)\b",
    rf"(?<=[\w\])}}]){_QUOTE}(?i:s|m|d|re|ve|ll)(?!\w)",
    rf"{_QUOTE}(?:[nN]{_QUOTE}?|[eE]m|\d0s)(?!\w)",
    rf"(?i:y){_QUOTE}(?=(?i:all)\b)",
    r"(?<!\w)@[A-Za-z_]\w*",
    r"(?<!\w)[:;=]-?[()]",
    r"(?i:no)\.(?=\s+\d)",
    r"[A-Za-z](?:\.[A-Za-z])+\.?(?![A-Za-z])",
    rf"(?:{_ABBREVIATIONS})\.(?!\w)",
    r"(?<![\w.])[A-Za-z]\.(?![\w.])",
    r"\d+(?i:st|nd|rd|th|s)\b",
    r"\w+(?:\.\w+)*\.[A-Za-z]\w*(?!\w)",
    r"(?<!\w)[-+]?(?>\d+(?:[.,:/-]\d+)+)(?:-[A-Za-z]\w*)*",
    r"(?<!\w)[-+](?>\d+)(?![A-Za-z])|\.\d+(?:\.\d+)*",
    r"[^\W\d_]+&[^\W\d_]+(?<=[A-Z])",
    r"[cC]\+\+",
    r"\w+(?:[-/]\w+)*",
    r"\.\s?\.\s?\.+|\.|[!?]+|-{2,}|-",
    r"``|''",
    r"\S",
)
_TOKEN = re.compile("|".join(f"(?:{rule})" for rule in _RULES))


def tokenise(caption: str) -> list[str]:
  """A caption's tokens in lower case, marks among them.

  >>> tokenise("The family's cake - it cannot wait!")
  ['the', 'family', "'s", 'cake', '-', 'it', 'can', 'not', 'wait', '!']
  """
  text = _ENTITY.sub(lambda m: html.unescape(m[0]),
                     caption.replace("\n", " "))
  out = []
  for match in _TOKEN.finditer(text):
    token = match[0]
    if token == '"':
      opens = (text[match.end():match.end() + 1].isalnum()
               and not text[:match.start()][-1:].isalnum())
      token = "``" if opens else "''"
    elif token == "'":
      opens = (text[match.end():match.end() + 1].isalnum()
               and not text[:match.start()][-1:].isalnum())
      token = "`" if opens else "'"
    elif set(token) <= set(". ") and len(token) > 1:
      token = "..." if token.count(".") > 2 else token
    elif set(token) == {"-"} and len(token) > 1:
      token = "--"
    for bracket, name in _BRACKETS.items():
      token = token.replace(bracket, name)
    out.append(token.translate(_PLAIN).lower())
  return out


def caption_words(caption: str) -> str:
  """What pycocoevalcap's scorers are given for a caption.

  >>> caption_words("A man, a plan... (and a canal)!")
  'a man a plan -lrb- and a canal -rrb-'
  """
  return " ".join(t for t in tokenise(caption) if t not in DROPPED)
