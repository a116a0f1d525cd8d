"""Question 5: is mean pooling inferior to [CLS]? And flattening, does it destroy order?

Poolings are compared with [CLS] on the same test texts, each at the layer that dev chooses. Whether order survives is
asked of a task that only order solves, against baselines that see none.
"""

from clsprobe.order import Order
from clsprobe.poolings import Poolings

inferior = Poolings(task="grammar:tense:150", layers="0,3,6", readouts="cls,mean,max").run()
print(inferior)

destroyed = Order(task="grammar:word_order:150", layers="0,6", readouts="cls,mean,flatten_projected").run()
print(destroyed)
for exhibit in (inferior.answer.exhibits[0], destroyed.answer.exhibits[0]):
    print(exhibit.table.round(3).to_string(index=False))
