"""Norms, seen from everywhere: an attack climbs in one, an optimizer descends in one, a margin is its dual's."""

from jaxrobust.geometry.dykstra import dykstra as dykstra
from jaxrobust.geometry.fourier import contrast_sensitivity as contrast_sensitivity
from jaxrobust.geometry.fourier import fourier_l1 as fourier_l1
from jaxrobust.geometry.fourier import fourier_linf as fourier_linf
from jaxrobust.geometry.l1_box import project_l1_box as project_l1_box
from jaxrobust.geometry.norm import Geometry as Geometry
from jaxrobust.geometry.norm import intersect as intersect
from jaxrobust.geometry.norm import within as within
from jaxrobust.geometry.p_norms import l1 as l1
from jaxrobust.geometry.p_norms import l2 as l2
from jaxrobust.geometry.p_norms import linf as linf
from jaxrobust.geometry.p_norms import lp as lp
from jaxrobust.geometry.spectral import spectral as spectral
