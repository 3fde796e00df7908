"""Training: quantizers with gradients, losses of distillation, proximal steps, and the loop that uses them."""
