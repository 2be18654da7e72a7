"""The applications; each is a scientific question with its study, its figures and its verbs."""
