"""Where examples come from: sources that live on the device, streams that do not, and random changes of images."""

from jaxrobust.data.arrays import Splits as Splits
from jaxrobust.data.arrays import arrays as arrays
from jaxrobust.data.cifar10 import cifar10 as cifar10
from jaxrobust.data.digits import digits as digits
from jaxrobust.data.idx import idx as idx
from jaxrobust.data.mixture import mixture as mixture
from jaxrobust.data.npz import npz as npz
from jaxrobust.data.stream import stream as stream
from jaxrobust.data.tfds import prepare as prepare
from jaxrobust.data.tfds import tfds as tfds
from jaxrobust.data.transforms import crop as crop
from jaxrobust.data.transforms import flip as flip
from jaxrobust.data.transforms import transformed as transformed
from jaxrobust.data.windows import windows as windows
