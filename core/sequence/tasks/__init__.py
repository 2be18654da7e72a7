"""Small tasks with exact verifiers, on which objectives and searches are checked without any download."""
