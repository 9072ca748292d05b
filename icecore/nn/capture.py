"""A model's queries, keys and values as `icecore.calibrate` takes them."""

from .attend import exact_attention


def capture_layers(run, *, attention=exact_attention):
    """What `icecore.calibrate` calls for the queries, keys and values of every layer.

    Parameters
    ----------
    run : callable
        ``run(attention=...)`` runs the model: ``partial(nn.forward, weights, tokens)``, ``partial(nn.encode_image, weights,
        pixels)``.
    attention : callable, optional
        What the model attends by meanwhile, as of `forward`; `bidirectional_attention` for encoders.

    Returns
    -------
    callable
        ``captures(take)`` runs the model and calls ``take(layer, query, key, value)`` in each layer, those with a window
        of their own aside.
    """

    def captures(take):
        def attend(query, key, value, *, layer, **options):
            if options.get("window") is None:
                take(layer, query, key, value)
            return attention(query, key, value, layer=layer, **options)

        run(attention=attend)

    return captures
