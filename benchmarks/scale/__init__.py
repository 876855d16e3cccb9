"""How a Newton step and a language model's head scale over devices and processes, and what they send."""
