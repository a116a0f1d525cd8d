from .encoders.loading import load_encoder as load_encoder
from .extraction.extractor import Extractor as Extractor
