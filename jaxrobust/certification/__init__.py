"""Certificates: radii within which no change of an image changes a smoothed classifier's answer."""

from jaxrobust.certification.denoised import behind_denoiser as behind_denoiser
from jaxrobust.certification.denoised import denoised as denoised
from jaxrobust.certification.evaluation import certified as certified
from jaxrobust.certification.smoothing import Certificate as Certificate
from jaxrobust.certification.smoothing import Prediction as Prediction
from jaxrobust.certification.smoothing import certify as certify
from jaxrobust.certification.smoothing import certify_counts as certify_counts
from jaxrobust.certification.smoothing import predict as predict
