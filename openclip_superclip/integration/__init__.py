"""Where the plugin meets OpenCLIP: hooks called on an unpatched one, patches, the model factory."""
