"""Models as functions of a pytree of parameters, with their closed-form derivatives."""
