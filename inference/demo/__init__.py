"""The demo model: a tiny LLaVA-Rad that knows synthetic phantoms only."""
