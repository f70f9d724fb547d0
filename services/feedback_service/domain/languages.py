"""What mail servers say in other languages than English, by what it means: the second half of `phrases`.

A server names a thing and its state: a mailbox that is full, an address that does not exist. So a line here holds the
things and the states of one language, with bars between alternatives: any of the one, a short gap, any of the other.
Whoever writes a new sentence of the same words is understood. Accents are left out of account on both sides, since
half of the servers can't spell them.

The words are those of the languages; that servers use them was seen at the providers named, and in the localised
reports of Exchange and Gmail.
"""

from typing import Final

from feedback_service.domain.phrases import Phrases

_THINGS_ES_PT: Final = "usuario|destinatario|cuenta|conta |buzon|casilla|caixa|direccion|endereco"
_THINGS_IT: Final = "utente|destinatario|casella|cassetta|indirizzo|account"
_THINGS_FR: Final = "utilisateur|destinataire|compte|boite"
_THINGS_DE: Final = "empfanger|empfaenger|adressat|benutzer|nutzer|postfach|konto|mailbox|account"
_THINGS_NL: Final = "gebruiker|ontvanger|geadresseerde|postvak|postbus|mailbox|account"
_THINGS_PL_CS: Final = "uzytkownik|adresat|odbiorc|skrzynk|konto|uzivatel|schrank|prijemce"
_THINGS_RU: Final = "пользовател|получател|абонент|ящик|аккаунт|учетн|учётн"
_THINGS_JA: Final = "宛先|あて先|送信先|受信者|ユーザ|アドレス|メールボックス|アカウント"
_THINGS_ZH: Final = "用户|用戶|收件人|邮箱|郵箱|信箱|账号|帐号|帳號|账户|帐户|地址"
_THINGS_KO: Final = "사용자|수신자|계정|주소|메일함|편지함"

ANSWERS_BY_ITSELF: Final[Phrases] = (
    *("absent du bureau", "reponse automatique", "abwesenheit", "automatische antwort", "respuesta automatica"),
    *("resposta automatica", "risposta automatica", "automatisch antwoord", "automatyczna odpowiedz", "автоответ"),
    *("自動応答", "自動返信", "自动回复", "自動回覆"),
)

ABOUT_SENDER: Final[Phrases] = (
    *("emetteur", "expediteur", "absender", "remitente", "mittente", "remetente", "afzender", "nadawc", "odesilatel"),
    "отправител … не существу|не найден|отклон|запрещ|заблок|адрес",
    "发件人|寄件者|送信元|送信者|발신자 … 地址|无效|不存在|被拒|拒绝|黑名单|アドレス|拒否|차단",
)

PACED: Final[Phrases] = ("trop de connexions", "cuota de envio", "limite de envio", "発信数", "发送频率", "频率限制")

# Terra, UOL, Telefónica; Libero, Aruba; Orange, La Poste, SFR; GMX, T-Online; KPN; WP, Onet, Interia, Seznam; mail.ru,
# Yandex; docomo, KDDI, biglobe; QQ, 163, Sina; Naver.
USER_UNKNOWN: Final[Phrases] = (
    f"{_THINGS_ES_PT} … no exist|nao exist|inexistente|desconoc|desconhec|no encontrad|nao encontrad|nao foi encontrad"
    "|no se encontr|no se encuentra|no es valid|nao e valid|invalid",
    "no existe|nao existe|no se encontro … el usuario|la cuenta|el buzon|el destinatario|la direccion|la casilla"
    "|o usuario|a conta|o destinatario|o endereco|dicha|ese ",
    f"{_THINGS_IT} … non esist|inesistente|sconosciut|non trovat|non e stat|non valid|errat",
    "nessun utente",
    f"{_THINGS_FR}|adresse … n'exist|inconnu|inexistant|introuvable|invalide|incorrecte",
    f"{_THINGS_DE}|adresse … unbekannt|existiert nicht|nicht gefunden|nicht vorhanden|nicht bekannt|ungultig|ungueltig",
    "unbekannter|unbekannte … empfanger|empfaenger|benutzer|nutzer|adress",
    f"{_THINGS_NL}|mailadres … onbekend|bestaat niet|niet gevonden|niet bekend|ongeldig",
    f"{_THINGS_PL_CS}|adres … nie istniej|nieznan|nie znalezion|neexistuj|neznam|nenalezen|neplatn",
    "nie ma takiego|brak takiego … konta|uzytkownik|adres|skrzynk|odbiorc",
    f"{_THINGS_RU}|адрес … не существу|не найден|неизвест|не зарегистр",
    "нет такого|такого … пользовател|получател|адрес|ящик",
    "bruker|brukar|anvandar|bruger|modtager|mottager|mottagar|mottaker|mottakar … finns inte|finnes ikke|findes ikke"
    "|okand|ukjent|ukendt|hittades inte",
    "kullanici|alici|hesap|hesab … bulunamadi|gecersiz|mevcut degil| yok",
    f"{_THINGS_JA} … 存在しま|存在しな|見つかりま|見つからな|不明",
    "ディレクトリ|リスト|登録|該当|ユーザ … ありません|いません|ておりません",
    f"{_THINGS_ZH} … 不存在|未找到|找不到|无效|無效",
    f"{_THINGS_KO} … 존재하지|찾을 수 없|없습니다",
    "존재하지 않는|없는 … 사용자|수신자|계정|주소",
)

MAILBOX_FULL: Final[Phrases] = (
    *("cuota exced", "zuviele mails", "zu viele mails", "uberfullt", "ueberfuellt", "przepelnion"),
    *("brak miejsca", "переполнен", "нет места", "容量", "空きが", "満杯", "一杯", "いっぱい"),
    *("已满", "已滿", "空间不足", "가득"),
    f"{_THINGS_ES_PT}|cuota … llen|lleno|cheia|cheio|lotada|excedi",
    f"{_THINGS_IT} … pien|esaurit",
    f"{_THINGS_FR}|messagerie … pleine|satur|est plein",
    f"{_THINGS_DE} … voll",
    f"{_THINGS_NL} … vol|is vol",
    f"{_THINGS_PL_CS} … pelna|pln",
    "квот … превыш|исчерп",
    "postlada|brevlada|postboks|postkasse|innboks|inkorg … full|fuld",
    "kutusu … dolu",
)

ACCOUNT_DISABLED: Final[Phrases] = (
    f"{_THINGS_ES_PT} … deshabilitad|desactivad|desativad|inactiv|inativ|bloquead|suspendid|suspens|cancelad",
    *("falta de uso", "inutilizzo"),
    f"{_THINGS_IT} … disabilitat|disattivat|bloccat|sospes|scadut",
    f"{_THINGS_FR} … desactiv|suspendu|bloqu|inactif|inactive|archiv|ferme",
    f"{_THINGS_DE} … gesperrt|deaktiviert|inaktiv|stillgelegt|geschlossen",
    f"{_THINGS_NL} … geblokkeerd|uitgeschakeld|inactief|opgeheven",
    f"{_THINGS_PL_CS} … zablokowan|nieaktywn|wylaczon|zablokovan|deaktiv",
    f"{_THINGS_RU} … заблокирован|отключен|отключён|неактив",
    f"{_THINGS_JA} … 停止|無効|凍結",
    f"{_THINGS_ZH} … 停用|冻结|凍結|禁用|锁定|注销",
    f"{_THINGS_KO} … 휴면|정지|비활성",
)

INVALID_DOMAIN: Final[Phrases] = (
    "dominio|domaine|domane|domain|domena|домен|ドメイン|域名|도메인 … no exist|nao exist|non esist|n'exist|inexist"
    "|inesist|existiert nicht|nicht gefunden|introuvable|inconnu|desconoc|desconhec|sconosciut|unbekannt|nie istniej"
    "|neexistuj|bestaat niet|не существу|не найден|存在しま|存在しな|見つかりま|見つからな|不存在|존재하지",
)

REFUSED: Final[Phrases] = (
    *("indesirable", "no desead", "nao solicitad", "indesejad", "indesiderat", "unerwunscht", "unerwuenscht"),
    *("ongewenst", "niechcian", "antyspam", "нежелательн", "спам", "迷惑メール", "受信拒否", "垃圾邮件", "垃圾郵件"),
    *("permiso para", "permissao para", "il permesso", "autorisation de", "autorizzazione", "autorizacion"),
    *("autorizacao", "berechtig", "uprawnie", "разрешени", "権限", "权限", "權限", "권한"),
    *("拒收", "黑名单", "스팸", "차단", "liste noire", "lista negra", "schwarze liste", "lista nera"),
    *("taille limite", "zu gross", "trop volumineu", "demasiado grande", "muito grande", "troppo grande", "authentif"),
)

UNREACHABLE: Final[Phrases] = (
    *("zeituberschreitung", "nicht erreichbar", "vorubergehend", "plus tard", "mas tarde", "mais tarde", "piu tardi"),
    *("pozniej", "позже", "временно", "後ほど", "稍后", "超时", "タイムアウト", "connexions simultan"),
)

RECIPIENT_REFUSED: Final[Phrases] = (
    *("n'existe pas", "no existe", "nao existe", "non esiste", "existiert nicht", "nie istnieje", "neexistuj"),
    *("не существует", "не найден", "存在しま", "不存在", "inconnu", "unbekannt", "desconocid", "sconosciut"),
    *("inexistente", "inesistente"),
)

MESSAGE_REFUSED: Final[Phrases] = (
    *("abgelehnt", "zuruckgewiesen", "rechazad", "rejeitad", "rifiutat", "respint", "geweigerd", "odrzucon"),
    *("отклонен", "отклонён", "message refus", "mail refus", "mail rejet", "message rejet", "拒否", "拒绝", "거부"),
)
