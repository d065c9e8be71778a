"""The systems as trainables, one a module; and what several of them share."""

SYSTEMS = ("finetune", "icl", "maml", "mann", "multitask", "protonet")
