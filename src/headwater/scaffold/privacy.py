"""Which columns look secret or personal, by their names alone: what `init` withholds until somebody decides.

Withholding too much costs an edit; publishing too much cannot be taken back. So doubt withholds.
"""

from __future__ import annotations

import re
from typing import Literal

from headwater.contracts.naming import snake
from headwater.scaffold.words import words

Kind = Literal["secret", "personal"]

_SECRET = re.compile(
    r"(^|_)(password|passwd|pwd|passphrase|passcode|pass|pin|token|tokens|secret|secrets|salt|hash|digest|signature|otp|totp"
    r"|mfa|api_?key|access_?key|private_?key|secret_?key|encryption_?key|credential|credentials|session|session_?key"
    r"|session_?id|sessionid|cookie|cookies|nonce|csrf|jwt|bearer|auth_?code|activation_?(key|code)|reset_?(key|code)"
    r"|recovery_?codes?|backup_?codes?|verification_?code|cvv|cvc|iban|bic|card_?number|cc_?number"
    r"|account_?number|bank_?account|webhook_?url|pan)($|_)"
)
_PERSONAL = re.compile(
    r"(^|_)(e_?mail|emails|mail|e_?mail_?address|username|user_?name|login|nickname|nick|screen_?name|handle|phone|telephone|tel|mobile|cell"
    r"|fax|address|addr|street|city|zip|zipcode|postal|postcode|postal_?code|birth|birthday|birthdate|dob|born|year_of_birth"
    r"|age|gender|sex|ip|ip_?addr|ip_?address|ipv4|ipv6|remote_addr|user_?agent|mac_?address|device_?id|ssn|sin|nin|nino"
    r"|tax_?id|tax_?number|vat_?id|passport|license_?number|national_?id|social_security|race|ethnicity|religion|nationality|marital"
    r"|salary|income|health|medical|blood_?type|diagnosis|disability|latitude|longitude|lat|lon|lng|geo|location|gps|avatar|photo|picture"
    r"|portrait|bio|biography|signed_by|recipient|maiden|surname|forename|firstname|lastname|fullname|initials|goals|mailing|contact"
    r"|linkedin|twitter|facebook|instagram|social)($|_)"
)
_NAME = re.compile(r"(^|_)name$|^name_")
_THINGS = words(
    """
    course program product item tag category country region file filename table group permission role status type class
    module unit section chapter block lesson exam quiz task project repository branch queue topic stream job event
    metric plan price currency language locale timezone bank_holiday holiday brand model sku warehouse store shop
    channel campaign domain host server service app application feature flag setting key field column attribute
    property assignment course_run run cohort team mode partition content component system package catalog
    """
)


def looks(column: str, entity: str) -> Kind | None:
    """How a column of an entity's table looks. A time of such a thing (`email_verified_at`) is no less personal."""
    name = snake(column)
    if _SECRET.search(name):
        return "secret"
    if _PERSONAL.search(name) or (_NAME.search(name) and not _names_a_thing(name, entity)):
        return "personal"
    return None


def _names_a_thing(column: str, entity: str) -> bool:
    """`course_name`, and `name` or `display_name` of a course."""
    before = re.sub(r"_?name$|^name_", "", column)
    about = before if before not in ("", "display", "short", "long", "full", "internal", "public") else entity
    return about in _THINGS or about.rsplit("_", 1)[-1] in _THINGS or about.split("_", 1)[0] in _THINGS
