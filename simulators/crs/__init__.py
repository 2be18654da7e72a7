"""Conversational recommendation: catalogues, their readers and generator, and dialogues on them."""

from simulators.crs.catalogue import Catalogue
from simulators.crs.conversation import Conversation
from simulators.crs.dialogue import Dialogue, Noise
from simulators.crs.embeddings import Embeddings
from simulators.crs.relation import Relation
from simulators.crs.rules import Rewards, Rules

__all__ = ["Catalogue", "Conversation", "Dialogue", "Embeddings", "Noise", "Relation", "Rewards", "Rules"]
