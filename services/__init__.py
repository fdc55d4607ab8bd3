"""The control plane: the API, the controller, their store and launchers. It never imports torch, lightning or ray."""
