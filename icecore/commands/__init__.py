"""The commands of ``python -m icecore``: each module has add_arguments(parser) and run(arguments) -> exit status."""
