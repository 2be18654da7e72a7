"""A simulated talker and the corpora of lip-reading: sentences, mouths, clips, alignments."""
