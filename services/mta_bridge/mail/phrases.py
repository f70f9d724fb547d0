"""The words by which texts about mails are read: as many languages and MTAs as were seen, and no more than words."""

import re
from typing import Final


def _any_of(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns), re.IGNORECASE)


class Words:
    """Patterns, and stems that are looked for as they stand: cheap, however many there are."""

    def __init__(self, patterns: re.Pattern[str], stems: tuple[str, ...]) -> None:
        self._patterns = patterns
        self._stems = stems

    def search(self, text: str) -> bool:
        """Whether one of them is in the text."""
        if self._patterns.search(text) is not None:
            return True
        lowered = f" {text.lower()} "
        return any(stem in lowered for stem in self._stems)


_STATES: Final = (
    *("n'exist", "no exist", "não exist", "nao exist", "existiert", "inexist", "unbekannt", "onbekend", "inconnu"),
    *("introuvable", "desconoc", "desconhec", "sconosciut", "nieznan", "neznam", "nicht gefunden", "niet gevonden"),
    *("non trovat", "não encontrad", "não foi encontrad", "no encontrad", "no se enc", "bestaat", "istnieje"),
    *("neexistuj", "esiste", "inesistent", "не существу", "не найден", "неизвест", "переполн", "отклон", "заблок"),
    *("отключ", "недоступ", " voll", " vol ", " vol.", "llena", "lleno", "pleine", "piena", "pieno", "cheia", "lotada"),
    *("pełna", "plná", "überfüllt", "przepełn", "satur", "gesperrt", "deaktiv", "désactiv", "desactiv", "disabilitat"),
    *("bloqu", "bloccat", "zablokow", "suspens", "inactiv", "rechaz", "rejeit", "rifiut", "abgelehnt", "geweiger"),
    *(
        "odrzuc",
        "rejet",
        "存在",
        "見つか",
        "不明",
        "一杯",
        "いっぱい",
        "満杯",
        "容量",
        "拒否",
        "停止",
        "無効",
        "找不到",
    ),
    *("已满", "已滿", "空间不足", "拒收", "拒绝", "停用", "冻结", "존재하지", "가득", "거부"),
)
"""What is wrong, in other languages than English."""

_ADDRESSEES: Final = (
    *("destinat", "empfänger", "zugestellt", "adress", "direcció", "direccion", "indirizz", "endereço", "non remis"),
    *("remis au", "no se pudo", "no se ha", "no pudo", "entregad", "entregar", "consegnat", "geadresseerde"),
    *("ontvanger", "afgelever", "dostarczon", "doręczon", "doručen", "доставл", "получател", "宛先", "あて先"),
    *("送信先", "配信", "送信でき", "收件", "无法送达", "无法发送", "退信", "수신자", "배달"),
)
"""To whom it should have gone, in other languages than English."""

ANNOUNCES: Final = Words(
    _any_of(
        r"follow(?:ing|s)",
        r"recipient",
        r"could ?n[o']?t be (?:delivered|sent)",
        r"cannot be delivered",
        r"not (?:be )?delivered",
        r"undeliver",
        r"permanent",
        r"fatal",
        r"fail",
        r"unable to deliver",
        r"delivery to",
        r"was(?:n't| not) delivered",
        r"problem",
        r"rejected",
        r"did ?n[o']t reach",
        r"returned",
        r"error",
        r"bounce",
    ),
    _ADDRESSEES,
)
"""Before an address: what follows is about its failure."""

FAILS: Final = Words(
    _any_of(
        r"unknown",
        r"invalid",
        r"not (?:an? )?(?:found|exist|known|valid|listed|accepted|allowed|delivered|recogni[sz]ed)",
        r"n[o']?t exist",
        r"no such",
        r"no mailbox",
        r"full",
        r"quota",
        r"disabled",
        r"inactive",
        r"suspend",
        r"reject",
        r"denied",
        r"refus",
        r"block",
        r"spam",
        r"fail",
        r"unable",
        r"could ?n[o']?t",
        r"cannot",
        r"can't",
        r"undeliver",
        r"timed? ?out",
        r"expired",
        r"delay",
        r"deferred",
        r"relay",
        r"policy",
        r"too (?:large|big|many)",
        r"unrout",
        r"not local",
        r"moved",
        r"closed",
        r"no longer",
        r"duplicate",
        r"loop",
        r"error",
    ),
    _STATES,
)
"""Something failed, whatever it was."""

SAYS_WHY: Final = Words(
    _any_of(
        r"unknown",
        r"invalid",
        r"not (?:an? )?(?:found|exist|known|valid|listed|accepted|allowed|active|collected|recogni[sz]ed)",
        r"n[o']?t exist",
        r"no such",
        r"no mailbox",
        r"full",
        r"quota",
        r"disabled",
        r"inactive",
        r"suspend",
        r"reject",
        r"denied",
        r"refus",
        r"block",
        r"spam",
        r"timed? ?out",
        r"exceed",
        r"deferred",
        r"relay",
        r"policy",
        r"too (?:large|big|many)",
        r"unrout",
        r"unavailable",
        r"not (?:a )?local",
        r"moved",
        r"closed",
        r"no longer",
        r"n't have",
        r"n't (?:find|found|deliver|accept)",
        r"could not be found",
        r"not deliverable",
        r"over ?quota",
        r"loop",
        r"unreachable",
        r"unresolv",
        r"lookup",
        r"socket",
        r"malformed",
        r"storage",
        r"space",
    ),
    _STATES,
)
"""Something failed, and the words tell why."""

DELAYS: Final = _any_of(
    r"will (?:keep|continue|be) (?:on )?(?:try|retr|attempt)",
    r"(?:has|have) (?:not yet|been delayed)",
    r"not yet been delivered",
    r"still (?:being|trying)",
    r"warning message only",
    r"delivery (?:is |has been )?delayed",
    r"attempts will continue",
    r"will retry",
    r"do not need to (?:resend|do anything)",
    r"no action is required",
)
"""It is being tried again."""

BOUNCE_SUBJECT: Final = _any_of(
    r"undeliver",
    r"deliver(?:y|ies)? (?:status|fail|notif|problem|report|has failed|incomplete|delay|error)",
    r"delivery",
    r"failure (?:notice|delivery)",
    r"returned (?:mail|to sender)",
    r"returning message",
    r"mail (?:delivery|system|could not|not delivered|returned|failure)",
    r"non[- ]?deliver",
    r"not (?:be )?delivered",
    r"could ?n[o']?t be (?:sent|delivered)",
    r"fail(?:ed|ure)? (?:mail|message|notif)",
    r"message (?:delivery|delayed|not|status)",
    r"warning:? (?:could|message|e-?mail)",
    r"unzustellbar",
    r"nicht zugestellt",
    r"rückmeldung",
    r"non remis",
    r"échec",
    r"remise",
    r"no (?:se (?:pudo|ha)|entregado)",
    r"devuelto|devolvid|falha na entrega|não entregue|não (?:foi )?possível",
    r"mancata consegna|mancato recapito|non recapitabile",
    r"onbestelbaar|niet (?:worden )?(?:bezorgd|afgelever)",
    r"nie (?:dostarczon|doręczon|można)|niedostarczon|zwrot",
    r"nedoručiteln|nedoručen",
    r"не доставлен|недоставлен|невозможно доставить|возврат",
    r"olevererbar|ikke lever|kunde inte levereras|kunne ikke lever|teslim edilemedi|kézbesíthetetlen",
    r"退信|无法送达|未送达|无法投递|配送不能|배달|반송",
    r"bounce",
    r"loop (?:alert|detect)|mail loop",
    r"mail error",
    r"user unknown",
    r"rejected",
    r"配信",
    r"エラー",
    r"送信",
)
"""The subject of a mail about a mail."""

REPLIES_BY_ITSELF: Final = _any_of(
    r"^auto:",
    r"out[ -]of[ -](?:the )?office",
    r"auto(?:matic|mated)?[ -:]*(?:reply|respon|answer)",
    r"vacation",
    r"on holiday",
    r"away from",
    r"abwesen",
    r"absen[ct]",
    r"réponse automatique",
    r"respuesta autom",
    r"risposta automatica",
    r"automat(?:isk|yczn|ick|ikus)",
    r"fuori (?:sede|ufficio)",
    r"fuera de (?:la )?oficina",
    r"fora do escrit",
    r"urlaub",
    r"en vacances",
    r"автоответ",
    r"自动回复",
    r"automatische? antwort",
    r"自動|不在",
    r"afwezig|frånvar|fravær|poissa|távollét|nieobecn|отсутств|mimo kancel",
    r"ausente|assente|in ferie|vakantie|semester",
    r"자동",
)
"""The subject of an answer that a machine wrote."""

ANSWERS: Final = _any_of(r"^\s*(?:re|aw|antw|sv|vs|odp|ynt|rif|res|回复|答复|返信)\s*[:\uff1a]")
"""The subject of an answer, whatever was asked."""

DAEMON: Final = _any_of(
    r"mailer-?daemon",
    r"post_?master",
    r"mail[ .]delivery",
    r"maildelivery",
    r"mail-?daemon",
    r"<>",
    r"microsoft exchange",
)
"""The sender of a mail about a mail."""

MACHINE: Final = _any_of(
    r"^mailer-daemon@",
    r"^postmaster@",
    r"^mail-?daemon@",
    r"^maildaemon@",
    r"^abuse@",
    r"^no-?reply@",
    r"^bounces?@",
)
"""Addresses that are nobody's."""

ABOUT_SENDER: Final = _any_of(
    r"^\W*(?:from|sender|reply-to|cc|return-path|message-id)\b.{0,12}:",
    r"^\W*(?:von|de|expéditeur|remitente)\b.{0,12}:",
    r"^\W*(?:contact|mailto|your e-?mail)\b.{0,12}:",
)
"""A line about who wrote, and not to whom."""

CONTINUES: Final = _any_of(
    r"^.{0,16}your message (?:cannot|could not|can't|has not|was not)",
    r"^.{0,60}following (?:recipient|address)",
    r"^\s*recipient address:",
)
"""After headers of the original: the report goes on."""

COPY_BEGINS: Final = _any_of(
    r"^[\s>*|]{0,20}(?:- )?-{2,}.{0,20}(?:original|copy|returned|header|message|mensaje|nachricht|unsent|forwarded)",
    r"^.{0,16}below this line is",
    r"^.{0,16}this is a copy of",
    r"^.{0,16}copy of (?:the|your) (?:original|message)",
    r"^.{0,16}original (?:message|mail) (?:follow|head|is|as follow|:)",
    r"^.{0,16}the (?:original|first|header of the) (?:message|\d+ lines)",
    r"^.{0,16}your message (?:header|follows)",
    r"^.{0,16}message headers? follow",
    r"^.{0,16}original-?nachricht",
    r"^.{0,16}message d'origine",
    r"^.{0,16}mensaje original",
    r"^\s*(?:received|return-path|dkim-signature|mime-version|message-id):",
)
"""Where the copy of the original begins."""

NO_COPY: Final = _any_of(
    r"^.{0,16}\bid of",
    r"^.{0,40}original message (?:was|could|cannot)",
    r"^[\s>*|-]{2,24}(?:server|error|reply|response|status) message",
)
"""Lines that look like that, and tell something."""
