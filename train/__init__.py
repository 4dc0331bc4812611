"""Fine-tuning. The only room that names trl, deepspeed and accelerate."""
