"""Dialogues with people, in a terminal and on a page.

``ChatSession`` is one dialogue of a person with a policy, ``Matcher`` finds attributes in free text, ``chat`` is the
loop of a terminal, and ``serve`` answers a browser.
"""

from apps.crs.chat.matching import Matcher
from apps.crs.chat.service import create_server, serve
from apps.crs.chat.session import ChatSession
from apps.crs.chat.terminal import chat

__all__ = ["ChatSession", "Matcher", "chat", "create_server", "serve"]
