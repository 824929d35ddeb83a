"""The networks that the recipes train: ordinary `nn.Module`s that know nothing of Rheostat."""
