"""The systems as mathematics, one paper a module. Each is a pure function of its parameters.

Shapes stand as capital suffixes of a tensor's name, in order:
T tasks, N ways, K shots, Q queries per way, B flattened batch, C H W image (channels, height, width), D features,
L tokens, V vocabulary, U users, I items (of images: all), M classes to draw tasks from, S inner steps, P prototypes or
parameters of one tensor, G groups.
"""
