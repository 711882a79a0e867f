"""Training stages: masked-LM pre-training, fine-tuning, distillation, and the resumable loop they share."""
