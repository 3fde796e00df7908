"""What is measured to choose by: what each layer costs, and what may be lost."""
