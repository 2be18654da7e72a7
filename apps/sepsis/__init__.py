"""Treatment policies for sepsis that can be justified by a debate about the evidence."""
