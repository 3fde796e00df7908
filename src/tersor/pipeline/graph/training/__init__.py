"""Training of graphs: the student, and the step `train`."""
