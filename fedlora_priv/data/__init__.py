"""Text, labels and who holds them: where the data comes from and how it is split over clients.

`package_index` fetches verified archives, `assets` names the demo's model and data, `tables` reads files,
`sources` turns an experiment's [data] table into a training and an evaluation `Dataset`, and `partition`
splits the training examples over the clients.
"""
